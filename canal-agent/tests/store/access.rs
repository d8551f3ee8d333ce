//! Users, passwords and certificates: that they work, and that each way of getting them wrong says so.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use canal_agent::store::{
    Cause, Credentials, EtcdOptions, Secret, Store, TlsFiles, options::ClientCertificate,
};
use etcd_client::{Permission, PermissionType, PutOptions};

use crate::etcd::{DEADLINE, Etcd, PREFIX, options};

fn with_user(etcd: &Etcd, name: &str, password: &str) -> EtcdOptions {
    let credentials = Credentials { username: name.into(), password: Secret::new(password) };
    EtcdOptions { credentials: Some(credentials), ..etcd.options() }
}

async fn refusal(options: &EtcdOptions) -> (Cause, String) {
    let error = Store::connect(options).await.expect_err("this must not connect");
    let text = error.to_string();
    assert!(!text.contains('\n') && text.contains(&options.endpoints[0]), "{text}");
    assert!(!text.contains("s3cret"), "{text}");
    println!("{text}");
    (error.cause, text)
}

/// A user `flannel` that may use flannel's prefix, and authentication on.
async fn with_authentication() -> Etcd {
    let etcd = Etcd::start().await;
    let mut admin = etcd.admin().await;
    admin.user_add("root", "root", None).await.unwrap();
    admin.user_grant_role("root", "root").await.unwrap();
    admin.user_add("flannel", "s3cret", None).await.unwrap();
    admin.role_add("flannel").await.unwrap();
    let range = Permission::new(PermissionType::Readwrite, format!("{PREFIX}/")).with_prefix();
    admin.role_grant_permission("flannel", range).await.unwrap();
    admin.user_grant_role("flannel", "flannel").await.unwrap();
    admin.put(format!("{PREFIX}/config"), "{}", Some(PutOptions::new())).await.unwrap();
    admin.auth_enable().await.unwrap();
    etcd
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_gets_in_and_stays_in_when_the_server_forgets_its_token() {
    let mut etcd = with_authentication().await;
    let store = Store::connect(&with_user(&etcd, "flannel", "s3cret")).await.unwrap();
    let config = format!("{PREFIX}/config");
    assert_eq!(store.get(&config).await.unwrap().unwrap().value, b"{}");
    let denied = store.get("/calico/x").await.unwrap_err();
    assert_eq!(denied.cause, Cause::PermissionDenied);

    etcd.restart();
    let deadline = Instant::now() + DEADLINE;
    loop {
        match store.get(&config).await {
            Ok(entry) => break assert_eq!(entry.unwrap().value, b"{}"),
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_and_a_missing_user_say_so() {
    let etcd = with_authentication().await;
    for (name, password) in [("flannel", "wrong"), ("nobody", "s3cret")] {
        let (cause, text) = refusal(&with_user(&etcd, name, password)).await;
        assert_eq!(cause, Cause::WrongCredentials, "{text}");
        assert!(
            text.contains("wrong user name or password; check --etcd-username and --etcd-password"),
            "{text}"
        );
    }
    let (cause, text) = refusal(&etcd.options()).await;
    assert_eq!(cause, Cause::CredentialsNeeded, "{text}");
    assert!(text.contains("set --etcd-username"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_no_error_where_there_are_no_users() {
    let etcd = Etcd::start().await;
    Store::connect(&with_user(&etcd, "flannel", "s3cret")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_named() {
    let (cause, text) = refusal(&options("http://127.0.0.1:1")).await;
    assert_eq!(cause, Cause::Refused, "{text}");
    assert!(text.contains("is etcd running there? check --etcd-endpoints"), "{text}");
    let (cause, text) = refusal(&options("http://no-such-host.invalid:2379")).await;
    assert_eq!(cause, Cause::UnknownHost, "{text}");
}

/// Certificates made for one test.
struct Authority(tempfile::TempDir);

impl Authority {
    fn new() -> Self {
        let authority = Self(tempfile::tempdir().unwrap());
        for name in ["ca", "other-ca"] {
            authority.openssl(&format!(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name} -keyout {name}.key -out {name}.pem"
            ));
        }
        for (name, ca, usage) in [
            ("server", "ca", "serverAuth"),
            ("client", "ca", "clientAuth"),
            ("stranger", "other-ca", "clientAuth"),
        ] {
            let extensions = format!("subjectAltName=IP:127.0.0.1\nextendedKeyUsage={usage},serverAuth\n");
            std::fs::write(authority.path("ext"), extensions).unwrap();
            authority.openssl(&format!(
                "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
            ));
            authority.openssl(&format!(
                "x509 -req -in {name}.csr -CA {ca}.pem -CAkey {ca}.key -CAcreateserial -days 2 -extfile ext -out {name}.pem"
            ));
        }
        authority
    }

    fn openssl(&self, arguments: &str) {
        let done = Command::new("openssl").args(arguments.split(' ')).current_dir(&self.0).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        Path::new(self.0.path()).join(name)
    }

    fn flag(&self, flag: &str, name: &str) -> String {
        format!("{flag}={}", self.path(name).display())
    }

    /// What a node says with that CA and certificate.
    fn options(&self, etcd: &Etcd, ca: &str, client: Option<&str>) -> EtcdOptions {
        let client = client.map(|name| ClientCertificate {
            certificate: self.path(&format!("{name}.pem")),
            key: self.path(&format!("{name}.key")),
        });
        EtcdOptions { tls: TlsFiles { ca: Some(self.path(ca)), client }, ..etcd.options() }
    }
}

async fn connects(options: &EtcdOptions) {
    let deadline = Instant::now() + DEADLINE;
    while let Err(error) = Store::connect(options).await {
        assert!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_works_with_the_ca_alone_and_a_wrong_ca_says_so() {
    let authority = Authority::new();
    let etcd = Etcd::start_tls(&[
        authority.flag("--cert-file", "server.pem"),
        authority.flag("--key-file", "server.key"),
    ]);
    connects(&authority.options(&etcd, "ca.pem", None)).await;

    let (cause, text) = refusal(&authority.options(&etcd, "other-ca.pem", None)).await;
    assert!(matches!(cause, Cause::UntrustedServer(_)), "{cause:?} {text}");
    assert!(text.contains("check --etcd-cafile"), "{text}");

    let plain = options(&etcd.endpoint().replace("https", "http"));
    let (cause, text) = refusal(&plain).await;
    assert_eq!(cause, Cause::ClosedPlain, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_says_so() {
    let authority = Authority::new();
    let etcd = Etcd::start().await;
    let mut wanted = authority.options(&etcd, "ca.pem", None);
    wanted.endpoints = vec![etcd.endpoint().replace("http", "https")];
    let (cause, text) = refusal(&wanted).await;
    // Whether its answer or its closing of the connection comes first is a matter of scheduling.
    assert!(matches!(cause, Cause::NotTls | Cause::ClosedTls), "{text}");
    assert!(text.contains("TLS"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_strange_client_certificate_says_so() {
    let authority = Authority::new();
    let etcd = Etcd::start_tls(&[
        authority.flag("--cert-file", "server.pem"),
        authority.flag("--key-file", "server.key"),
        authority.flag("--trusted-ca-file", "ca.pem"),
        "--client-cert-auth".into(),
    ]);
    connects(&authority.options(&etcd, "ca.pem", Some("client"))).await;
    for client in [None, Some("stranger")] {
        let (cause, text) = refusal(&authority.options(&etcd, "ca.pem", client)).await;
        assert!(
            matches!(cause, Cause::ClientCertificate(_) | Cause::ClosedTls),
            "{client:?}: {cause:?} {text}"
        );
        assert!(text.contains("check --etcd-certfile and --etcd-keyfile"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_members_in_the_list_do_not_matter() {
    let etcd = Etcd::start().await;
    let mut wanted = etcd.options();
    wanted.endpoints.insert(0, "http://127.0.0.1:1".into());
    wanted.endpoints.push("http://127.0.0.1:2".into());
    let store = Store::connect(&wanted).await.unwrap();
    for _ in 0..50 {
        store.get(PREFIX).await.unwrap();
    }
}
