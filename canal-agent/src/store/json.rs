//! JSON as Go's `encoding/json` sees it: members keep their order, names match in any case, the last one wins.
//! `serde_json::Value` sorts members, which would reorder what other writers wrote into a key that we rewrite.

use std::fmt::{self, Write as _};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, SeqAccess, Visitor},
    ser::{SerializeMap, SerializeSeq},
};
use serde_json::Number;

/// A JSON document with its members in the order of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Json {
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    pub fn string(text: impl Into<String>) -> Self {
        Self::String(text.into())
    }

    pub fn object<const N: usize>(members: [(&str, Json); N]) -> Self {
        Self::Object(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// The member that Go would decode into a field called `name`. `null` counts as absent, as it does there.
    pub fn member(&self, name: &str) -> Option<&Json> {
        let Self::Object(members) = self else { return None };
        members
            .iter()
            .rev()
            .find(|(member, value)| member.eq_ignore_ascii_case(name) && *value != Self::Null)
            .map(|(_, value)| value)
    }

    /// What a person would call this kind of value, for error messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::String(_) => "a string",
            Self::Array(_) => "a list",
            Self::Object(_) => "an object",
        }
    }

    /// The member called exactly this, to be changed in place.
    pub fn member_mut(&mut self, name: &str) -> Option<&mut Json> {
        let Self::Object(members) = self else { return None };
        members.iter_mut().find(|(member, _)| member == name).map(|(_, value)| value)
    }

    /// Sets a member. A new one goes where Go would write it: before the first present member that comes later in
    /// `order`, the names of the Go struct's fields. Does nothing to what is not an object.
    pub fn set(&mut self, name: &str, value: Json, order: &[&str]) {
        if let Some(present) = self.member_mut(name) {
            *present = value;
        } else if let Self::Object(members) = self {
            let place = |member: &str| order.iter().position(|known| *known == member);
            let at = members.iter().position(|(member, _)| place(member) > place(name));
            members.insert(at.unwrap_or(members.len()), (name.to_owned(), value));
        }
    }

    /// Compact text, as `encoding/json` writes it.
    pub fn render(&self) -> String {
        escape_as_go(&serde_json::to_string(self).expect("a tree with string keys is always JSON"))
    }
}

/// JSON text as Go writes it: with five characters escaped that only ever stand inside strings.
pub fn escape_as_go(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                let _ = write!(text, "\\u{:04x}", u32::from(c));
            }
            _ => text.push(c),
        }
    }
    text
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => s.serialize_unit(),
            Self::Bool(b) => s.serialize_bool(*b),
            Self::Number(n) => n.serialize(s),
            Self::String(text) => s.serialize_str(text),
            Self::Array(items) => {
                let mut seq = s.serialize_seq(Some(items.len()))?;
                items.iter().try_for_each(|item| seq.serialize_element(item))?;
                seq.end()
            }
            Self::Object(members) => {
                let mut map = s.serialize_map(Some(members.len()))?;
                members.iter().try_for_each(|(name, value)| map.serialize_entry(name, value))?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(Ordered)
    }
}

struct Ordered;

impl<'de> Visitor<'de> for Ordered {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, b: bool) -> Result<Json, E> {
        Ok(Json::Bool(b))
    }

    fn visit_i64<E>(self, n: i64) -> Result<Json, E> {
        Ok(Json::Number(n.into()))
    }

    fn visit_u64<E>(self, n: u64) -> Result<Json, E> {
        Ok(Json::Number(n.into()))
    }

    fn visit_f64<E>(self, n: f64) -> Result<Json, E> {
        Ok(Number::from_f64(n).map_or(Json::Null, Json::Number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::String(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Json::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Json::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_survives_with_the_order_of_its_members() {
        let text = r#"{"z":1,"a":[true,null,-2,1.5,"x"],"m":{"b":{},"a":18446744073709551615}}"#;
        assert_eq!(serde_json::from_str::<Json>(text).unwrap().render(), text);
    }

    #[test]
    fn the_last_member_of_any_case_wins_and_null_is_absent() {
        let json: Json = serde_json::from_str(r#"{"vni":1,"VNI":2,"Vni":null}"#).unwrap();
        assert_eq!(json.member("VNI"), Some(&Json::Number(2.into())));
        assert_eq!(json.member("Port"), None);
        assert_eq!(Json::Null.member("x"), None);
    }

    #[test]
    fn text_is_escaped_as_go_escapes_it() {
        let json = Json::object([("a", Json::string("<b> & \u{2028}\u{2029} \" é"))]);
        assert_eq!(json.render(), r#"{"a":"\u003cb\u003e \u0026 \u2028\u2029 \" é"}"#);
    }

    #[test]
    fn a_new_member_goes_where_the_struct_has_it_and_a_present_one_stays() {
        const ORDER: [&str; 4] = ["a", "b", "c", "d"];
        for (before, name, after) in [
            (r#"{"a":1,"c":1}"#, "b", r#"{"a":1,"b":7,"c":1}"#),
            (r#"{"x":1,"c":1}"#, "d", r#"{"x":1,"c":1,"d":7}"#),
            (r#"{"x":1,"b":1}"#, "a", r#"{"x":1,"a":7,"b":1}"#),
            (r#"{"b":null,"a":1}"#, "b", r#"{"b":7,"a":1}"#),
            ("{}", "c", r#"{"c":7}"#),
            ("[]", "c", "[]"),
        ] {
            let mut json: Json = serde_json::from_str(before).unwrap();
            json.set(name, Json::Number(7.into()), &ORDER);
            assert_eq!(json.render(), after);
        }
    }

    #[test]
    fn deep_nesting_is_an_error_and_not_a_crash() {
        assert!(serde_json::from_str::<Json>(&"[".repeat(100_000)).is_err());
    }
}
