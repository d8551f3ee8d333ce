//! Writing Calico's objects by Calico's protocol: create when absent, otherwise compare-and-swap with the
//! object's identity carried over; delete exactly one key, and only while it is still ours.

use std::time::{SystemTime, UNIX_EPOCH};

use rand::Rng;

use super::{Store, StoreError, error::Cause, json::Json, retry::Backoff};

/// Rounds of compare-and-swap before giving up: more means that two writers fight over the key.
const ROUNDS: usize = 16;

/// What an object keeps from its creation to its deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub uid: String,
    pub creation_timestamp: String,
}

impl Identity {
    /// The identity in `existing`, with whatever it lacks made now.
    pub fn of(existing: Option<&[u8]>) -> Self {
        let (uid, time) = existing.map(Self::parts).unwrap_or_default();
        Self {
            uid: uid.unwrap_or_else(uuid),
            creation_timestamp: time.unwrap_or_else(|| timestamp(SystemTime::now())),
        }
    }

    /// That of an object which lacks nothing of it.
    pub fn whole(value: &[u8]) -> Option<Self> {
        let (uid, time) = Self::parts(value);
        Some(Self { uid: uid?, creation_timestamp: time? })
    }

    fn parts(value: &[u8]) -> (Option<String>, Option<String>) {
        let json: Option<Json> = serde_json::from_slice(value).ok();
        let metadata = json.as_ref().and_then(|json| json.member("metadata"));
        let kept = |name| match metadata?.member(name)? {
            Json::String(text) if !text.is_empty() => Some(text.clone()),
            _ => None,
        };
        (kept("uid"), kept("creationTimestamp"))
    }
}

/// Creates the object unless the key exists; tells whether it did. What exists is never touched.
pub async fn create_if_absent(store: &Store, key: &str, value: Vec<u8>) -> Result<bool, StoreError> {
    Ok(store.create(key, value).await?.is_some())
}

/// Writes what `build` makes of the present value (`None`: the key is absent) and returns the key's revision.
/// An unchanged value is not written again.
pub async fn upsert(
    store: &Store,
    key: &str,
    build: impl Fn(Option<&[u8]>) -> Vec<u8>,
) -> Result<i64, StoreError> {
    let mut backoff = Backoff::short();
    for _ in 0..ROUNDS {
        let written = match store.get(key).await? {
            None => store.create(key, build(None)).await?,
            Some(present) => {
                let value = build(Some(&present.value));
                if value == present.value {
                    return Ok(present.mod_revision);
                }
                store.replace(key, present.mod_revision, value, present.lease).await?
            }
        };
        if let Some(revision) = written {
            return Ok(revision);
        }
        backoff.wait().await;
    }
    Err(contended(store, format!("update {key}")))
}

/// Deletes the key while `ours` says so of its value; tells whether it did. An absent key is no error.
pub async fn delete_if(store: &Store, key: &str, ours: impl Fn(&[u8]) -> bool) -> Result<bool, StoreError> {
    let mut backoff = Backoff::short();
    for _ in 0..ROUNDS {
        let Some(present) = store.get(key).await? else { return Ok(false) };
        if !ours(&present.value) {
            return Ok(false);
        }
        if store.delete(key, present.mod_revision).await? {
            return Ok(true);
        }
        backoff.wait().await;
    }
    Err(contended(store, format!("delete {key}")))
}

/// Is this WorkloadEndpoint of that container? One without a container belongs to whoever holds its key.
pub fn is_of_container(value: &[u8], container_id: &str) -> bool {
    let Ok(json) = serde_json::from_slice::<Json>(value) else { return false };
    match json.member("spec").and_then(|spec| spec.member("containerID")) {
        Some(Json::String(id)) => id.is_empty() || id == container_id,
        _ => true,
    }
}

fn contended(store: &Store, operation: String) -> StoreError {
    store.error(operation, Cause::Other("another writer keeps changing it; try again".into()))
}

/// A random UUID, version 4.
fn uuid() -> String {
    let bits = (rand::rng().random::<u128>() & !(0xf000 << 64) & !(0xc000 << 48)) | (4 << 76) | (2 << 62);
    let hex = format!("{bits:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// RFC 3339 in UTC, to the second, as Kubernetes writes times.
pub fn timestamp(at: SystemTime) -> String {
    let seconds = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (mut days, second) = (seconds / 86_400, seconds % 86_400);
    let mut year = 1970;
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!(
        "{year:04}-{month:02}-{:02}T{:02}:{:02}:{:02}Z",
        days + 1,
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn timestamps_are_utc_to_the_second() {
        for (seconds, want) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (1_795_498_981, "2026-11-24T05:43:01Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::from_secs(seconds)), want);
        }
    }

    #[test]
    fn uuids_are_random_and_of_version_4() {
        let (a, b) = (uuid(), uuid());
        assert_ne!(a, b);
        for id in [a, b] {
            let bytes = id.as_bytes();
            assert_eq!(id.len(), 36);
            assert_eq!([8, 13, 18, 23].map(|i| bytes[i]), [b'-'; 4], "{id}");
            assert_eq!(bytes[14], b'4', "{id}");
            assert!(b"89ab".contains(&bytes[19]), "{id}");
        }
    }

    #[test]
    fn an_identity_is_kept_and_only_its_gaps_are_filled() {
        let kept = Identity::of(Some(br#"{"metadata":{"uid":"u","creationTimestamp":"t"}}"#));
        assert_eq!(kept, Identity { uid: "u".into(), creation_timestamp: "t".into() });
        let half = Identity::of(Some(br#"{"metadata":{"uid":"u","creationTimestamp":null}}"#));
        assert_eq!(half.uid, "u");
        let value = br#"{"metadata":{"uid":"u","creationTimestamp":"t"}}"#;
        assert_eq!(Identity::whole(value), Some(Identity::of(Some(value))));
        assert_eq!(Identity::whole(br#"{"metadata":{"uid":"u"}}"#), None);
        assert!(half.creation_timestamp.ends_with('Z'));
        for nothing in [None, Some(&b"{"[..]), Some(b"{}")] {
            assert_eq!(Identity::of(nothing).uid.len(), 36);
        }
    }

    #[test]
    fn a_container_owns_its_endpoint_and_no_other() {
        assert!(is_of_container(br#"{"spec":{"containerID":"ca"}}"#, "ca"));
        assert!(!is_of_container(br#"{"spec":{"containerID":"cb"}}"#, "ca"));
        assert!(is_of_container(br#"{"spec":{}}"#, "ca"));
        assert!(!is_of_container(b"garbage", "ca"));
    }
}
