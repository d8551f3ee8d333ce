//! An API server that answers as it is told, and every way in which asking it can go wrong.

use std::{
    fs,
    io::{self, Read, Write},
    net::{Shutdown, TcpListener},
    path::PathBuf,
    process::Command,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::{
    RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use serde_json::{Value, json};

use super::*;
use crate::cni::config::Token;

/// Certificates made for one test.
struct Certificates(tempfile::TempDir);

impl Certificates {
    fn new() -> Self {
        let new = Self(tempfile::tempdir().unwrap());
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
        for name in ["ca", "other"] {
            new.openssl(&format!(
                "req -x509 {key} -days 2 -subj /CN={name} -keyout {name}.key -out {name}.pem"
            ));
        }
        fs::write(new.file("ext"), "subjectAltName=IP:127.0.0.1\n").unwrap();
        for (name, ca) in [("server", "ca"), ("client", "ca"), ("stranger", "other")] {
            new.openssl(&format!("req {key} -subj /CN={name} -keyout {name}.key -out {name}.csr"));
            new.openssl(&format!(
                "x509 -req -in {name}.csr -CA {ca}.pem -CAkey {ca}.key -CAcreateserial -days 2 -extfile ext -out {name}.pem"
            ));
        }
        new
    }

    fn openssl(&self, arguments: &str) {
        let run = Command::new("openssl").args(arguments.split(' ')).current_dir(&self.0).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn data(&self, name: &str) -> String {
        STANDARD.encode(fs::read(self.file(name)).unwrap())
    }

    /// Access with the right authority and a token.
    fn trusted(&self, server: &str) -> Access {
        Access {
            server: Some(server.to_owned()),
            certificate_authority: Some(self.file("ca.pem")),
            token: Some(Token("s3cret".to_owned())),
            ..Access::default()
        }
    }
}

/// What a server does when it has read a request.
enum Does {
    Answers(Vec<u8>),
    Hangs,
    /// Takes nobody without a certificate of its authority.
    AsksWho(Vec<u8>),
}

/// The address, and the requests that came.
fn server(certificates: &Certificates, does: Does) -> (String, mpsc::Receiver<String>) {
    let provider = Arc::new(ring::default_provider());
    let chain: Vec<_> = CertificateDer::pem_file_iter(certificates.file("server.pem"))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    let key = PrivateKeyDer::from_pem_file(certificates.file("server.key")).unwrap();
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let builder = if matches!(does, Does::AsksWho(_)) {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(certificates.file("ca.pem")).unwrap()).unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    let config = Arc::new(builder.with_single_cert(chain, key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    let (seen, requests) = mpsc::channel();
    thread::spawn(move || {
        while let Ok((socket, _)) = listener.accept() {
            let mut stream = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), socket);
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                head.push(byte[0]);
            }
            seen.send(String::from_utf8_lossy(&head).into_owned()).ok();
            match &does {
                Does::Answers(answer) | Does::AsksWho(answer) => {
                    stream.write_all(answer).ok();
                    stream.conn.send_close_notify();
                    stream.flush().ok();
                }
                Does::Hangs => drop(stream.read(&mut byte)),
            }
            // A close with something unread would take back what was said.
            stream.sock.shutdown(Shutdown::Write).ok();
            io::copy(&mut stream.sock, &mut io::sink()).ok();
        }
    });
    (address, requests)
}

fn http(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn web() -> PodName {
    PodName { namespace: "shop".into(), name: "web-0".into(), uid: None, infra_container_id: None }
}

fn pod() -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {
            "name": "web-0", "namespace": "shop", "generateName": "web-", "labels": {"app": "web"},
            "annotations": {
                "cni.projectcalico.org/ipAddrs": "[\"10.77.12.9\"]", "cni.projectcalico.org/hwAddr": "02:00:00:00:00:07",
                "cni.projectcalico.org/podIP": "10.77.12.9/32", "qos.projectcalico.org/ingressBandwidth": "1M",
            },
        },
        "spec": {
            "serviceAccountName": "web-sa", "nodeName": "node-a",
            "containers": [
                {"name": "a", "ports": [
                    {"name": "http", "containerPort": 8080, "protocol": "TCP"},
                    {"containerPort": 53, "protocol": "UDP", "hostPort": 5353, "hostIP": "10.0.0.7"},
                    {"containerPort": 9, "protocol": "SCTP"},
                ]},
                {"name": "b"},
            ],
        },
    })
}

/// A kubeconfig with this server, cluster and user, in a folder of its own.
fn kubeconfig(server: &str, cluster: &str, user: &str) -> (tempfile::TempDir, Access) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kubeconfig");
    let text = format!(
        "# Made for Canal.\napiVersion: v1\nkind: Config\nclusters:\n- name: local\n  cluster:\n    server: {server}\n    {cluster}\n\
         users:\n- name: canal\n  user:\n    {user}\ncontexts:\n- name: canal-context\n  context:\n    cluster: local\n    \
         user: canal\ncurrent-context: canal-context\n"
    );
    fs::write(&path, text).unwrap();
    (folder, Access { kubeconfig: Some(path), ..Access::default() })
}

fn ask(access: &Access) -> Result<PodFacts, CniError> {
    PodFacts::ask(access, &web())
}

#[test]
fn a_pod_is_read_by_a_kubeconfig() {
    let certificates = Certificates::new();
    let (server, requests) = server(&certificates, Does::Answers(http("200 OK", &pod().to_string())));
    let authority = format!("certificate-authority-data: {}", certificates.data("ca.pem"));
    let (folder, access) = kubeconfig(&server, &authority, "token: s3cret");
    let facts = ask(&access).unwrap();
    let port = |name: &str, protocol, port, host_port, host_ip: &str| Port {
        name: name.into(),
        protocol,
        port,
        host_port,
        host_ip: host_ip.into(),
    };
    let wanted = PodFacts {
        labels: [("app".to_owned(), "web".to_owned())].into(),
        service_account: Some("web-sa".into()),
        generate_name: Some("web-".into()),
        node_name: Some("node-a".into()),
        ports: vec![
            port("http", PortProtocol::Tcp, 8080, 0, ""),
            port("", PortProtocol::Udp, 53, 5353, "10.0.0.7"),
        ],
        wishes: crate::cni::Wishes {
            ip: Some([10, 77, 12, 9].into()),
            mac: Some("02:00:00:00:00:07".parse().unwrap()),
        },
        allowed_source_prefixes: Vec::new(),
        notes: vec![
            "annotation `qos.projectcalico.org/ingressBandwidth` has no effect: traffic of pods is not limited".into(),
        ],
    };
    assert_eq!(facts, wanted);
    let request = requests.recv().unwrap();
    assert!(request.starts_with("GET /api/v1/namespaces/shop/pods/web-0 HTTP/1.1\r\n"), "{request}");
    assert!(request.to_ascii_lowercase().contains("authorization: bearer s3cret\r\n"), "{request}");

    // Files beside the kubeconfig, and the token's before the token.
    fs::copy(certificates.file("ca.pem"), folder.path().join("ca.pem")).unwrap();
    fs::write(folder.path().join("token"), "newer\n").unwrap();
    let (other, access) =
        kubeconfig(&server, "certificate-authority: ca.pem", "token: old\n    tokenFile: token");
    for name in ["ca.pem", "token"] {
        fs::copy(folder.path().join(name), other.path().join(name)).unwrap();
    }
    ask(&access).unwrap();
    assert!(requests.recv().unwrap().to_ascii_lowercase().contains("bearer newer\r\n"));

    // A server that nobody vouches for, where the configuration says that this is fine.
    let (_kept, access) = kubeconfig(&server, "insecure-skip-tls-verify: true", "token: s3cret");
    ask(&access).unwrap();
    // The older keys, which come first, with the version in the address.
    let (_kept, access) = kubeconfig("https://127.0.0.1:1", "insecure-skip-tls-verify: true", "token: old");
    let access =
        Access { kubeconfig: access.kubeconfig, ..certificates.trusted(&format!("{server}/api/v1/")) };
    ask(&access).unwrap();
}

#[test]
fn a_client_certificate_is_shown_to_a_server_that_asks_for_one() {
    let certificates = Certificates::new();
    let (server, _requests) = server(&certificates, Does::AsksWho(http("200 OK", &pod().to_string())));
    let authority = format!("certificate-authority-data: {}", certificates.data("ca.pem"));
    let user = |certificate: &str, key: &str| {
        let user = format!(
            "client-certificate-data: {}\n    client-key-data: {}",
            certificates.data(certificate),
            certificates.data(key)
        );
        kubeconfig(&server, &authority, &user)
    };
    ask(&user("client.pem", "client.key").1).unwrap();
    let files = Access {
        client_certificate: Some(certificates.file("client.pem")),
        client_key: Some(certificates.file("client.key")),
        token: None,
        ..certificates.trusted(&server)
    };
    ask(&files).unwrap();

    for (access, says) in [
        (user("stranger.pem", "stranger.key").1, "it does not take our client certificate"),
        (user("client.pem", "stranger.key").1, "the client certificate and its key cannot be used"),
        (user("client.key", "client.key").1, "there is no certificate"),
        (certificates.trusted(&server), "it does not take our client certificate"),
        (Access { client_key: None, ..files.clone() }, "has no key"),
        (Access { client_certificate: None, ..files }, "no certificate"),
    ] {
        let error = ask(&access).unwrap_err();
        assert_eq!(error.code, Code::InvalidConfig, "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn each_refusal_says_what_to_do() {
    let certificates = Certificates::new();
    let status = |message: &str| json!({"kind": "Status", "message": message}).to_string();
    let huge = "x".repeat(5 << 20);
    for (answer, code, says) in [
        (http("401 Unauthorized", &status("Unauthorized")), Code::TryAgain, "status 401, Unauthorized"),
        (
            http("403 Forbidden", &status("pods \"web-0\"\nis forbidden")),
            Code::InvalidConfig,
            "pods \"web-0\" is forbidden",
        ),
        (
            http("404 Not Found", &status("pods not found")),
            Code::TryAgain,
            "there is no pod web-0 in namespace shop",
        ),
        (http("404 Not Found", "page"), Code::TryAgain, "(status 404)"),
        (http("429 Too Many", ""), Code::TryAgain, "cannot answer now (status 429)"),
        (http("503 Busy", "<html>"), Code::TryAgain, "cannot answer now (status 503)"),
        (http("302 Found\r\nlocation: https://127.0.0.1:1/", ""), Code::InvalidConfig, "status 302"),
        (http("200 OK", "<html>"), Code::InvalidConfig, "the answer is no pod: expected value"),
        (http("200 OK", "{}"), Code::InvalidConfig, "the answer is no pod: missing field"),
        (
            http("200 OK", &pod().to_string().replace("web-0", "web-1")),
            Code::InvalidConfig,
            "about \"shop\"/\"web-1\"",
        ),
        (http("200 OK", &huge), Code::InvalidConfig, "more than 4194304 bytes"),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".to_vec(),
            Code::InvalidConfig,
            "address of the API?",
        ),
        (b"garbage\r\n\r\n".to_vec(), Code::InvalidConfig, "address of the API?"),
        (Vec::new(), Code::TryAgain, "does the API listen there"),
    ] {
        let (server, _requests) = server(&certificates, Does::Answers(answer));
        let error = ask(&certificates.trusted(&server)).unwrap_err();
        assert_eq!(error.code, code, "{says}: {error}");
        assert!(error.details.contains(says), "{says}: {error}");
        assert_eq!(error.msg, "cannot learn about pod shop/web-0 from Kubernetes");
        assert!(error.details.starts_with(&server) || error.details.starts_with("the answer"), "{error}");
        assert!(!error.details.contains('\n') && !error.details.contains("s3cret"), "{error}");
    }
}

#[test]
fn a_server_that_is_not_there_or_not_the_right_one_says_so() {
    let certificates = Certificates::new();
    let (good, _requests) = server(&certificates, Does::Answers(http("200 OK", &pod().to_string())));
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let wrong_authority =
        Access { certificate_authority: Some(certificates.file("other.pem")), ..certificates.trusted(&good) };
    let no_authority =
        Access { certificate_authority: Some(certificates.file("ext")), ..certificates.trusted(&good) };
    let no_file =
        Access { certificate_authority: Some(certificates.file("none")), ..certificates.trusted(&good) };
    let other_name = good.replace("127.0.0.1", "localhost");
    for (access, code, says) in [
        (certificates.trusted(&format!("https://{unused}")), Code::TryAgain, "does the API listen there"),
        (wrong_authority, Code::InvalidConfig, "give the kubeconfig the one of this cluster"),
        (no_authority, Code::InvalidConfig, "no certificate in its certificate authority"),
        (no_file, Code::InvalidConfig, "cannot read the certificate authority of Kubernetes"),
        (certificates.trusted(&other_name), Code::InvalidConfig, "its certificate is not good"),
        (certificates.trusted("ftp://x"), Code::InvalidConfig, "the server of Kubernetes is \"ftp://x\""),
        (certificates.trusted("https://a b"), Code::InvalidConfig, "address of the API?"),
        (Access::default(), Code::InvalidConfig, "does not say where the API of Kubernetes is"),
    ] {
        let error = ask(&access).unwrap_err();
        assert_eq!(error.code, code, "{says}: {error}");
        assert!(error.to_string().contains(says), "{says}: {error}");
    }
    let (hangs, _requests) = server(&certificates, Does::Hangs);
    let error =
        PodFacts::ask_within(Duration::from_millis(200), &certificates.trusted(&hangs), &web()).unwrap_err();
    assert_eq!(error.code, Code::TryAgain, "{error}");
    assert!(error.details.contains("no whole answer within 200ms"), "{error}");
}

#[test]
fn a_kubeconfig_that_cannot_be_used_says_why_and_shows_no_secret() {
    let use_of =
        |cluster: &str, user: &str| ask(&kubeconfig("https://127.0.0.1:1", cluster, user).1).unwrap_err();
    let good = "insecure-skip-tls-verify: true";
    for (error, says) in [
        (use_of(good, "exec: {command: aws}"), "its user has `exec`, and this program starts no others"),
        (use_of(good, "auth-provider: {name: gcp}"), "its user has `auth-provider`"),
        (use_of(good, "username: s3cret\n    password: s3cret"), "its user has `username`"),
        (use_of(good, "as: s3cret"), "its user has `as`"),
        (use_of("tls-server-name: x", "token: s3cret"), "its cluster has `tls-server-name`"),
        (use_of("proxy-url: x", "token: s3cret"), "its cluster has `proxy-url`"),
        (use_of("certificate-authority-data: '%'", "token: s3cret"), "is not base64"),
        (use_of("certificate-authority: none.pem", "token: s3cret"), "cannot read the certificate authority"),
        (use_of(good, "tokenFile: none"), "cannot read the token for Kubernetes"),
        (use_of(good, "token: [s3cret]"), "it is not the YAML of a kubeconfig: line "),
        (use_of(good, "token: \"s3cret"), "it is not the YAML of a kubeconfig"),
    ] {
        assert_eq!(error.code, Code::InvalidConfig, "{error}");
        assert!(error.to_string().contains(says), "{says}: {error}");
        assert!(!error.to_string().contains("s3cret") && !error.to_string().contains('\n'), "{error}");
    }
    let (folder, access) = kubeconfig("https://127.0.0.1:1", good, "token: s3cret");
    let path = folder.path().join("kubeconfig");
    let text = fs::read_to_string(&path).unwrap();
    for (text, says) in [
        (
            text.replace("current-context: canal", "current-context: other"),
            "`current-context` \"other-context\" is not in it",
        ),
        (text.replace("cluster: local", "cluster: far"), "the cluster \"far\" of its context is not in it"),
        (text.replace("user: canal", "user: root"), "the user \"root\" of its context is not in it"),
        ("{}".to_owned(), "it has no `current-context`"),
        ("\u{0}".to_owned(), "it is not the YAML"),
    ] {
        fs::write(&path, text).unwrap();
        let error = ask(&access).unwrap_err();
        assert!(error.details.contains(says), "{says}: {error}");
    }
    fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(ask(&access).unwrap_err().details.contains("it is not "));
    fs::remove_file(&path).unwrap();
    assert!(ask(&access).unwrap_err().msg.contains("cannot read the kubeconfig"));
}

#[test]
fn kubeconfigs_are_read_however_they_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kubeconfig");
    let head = "clusters: [{name: c, cluster: {server: 'https://a:6443/', insecure-skip-tls-verify: SKIP}}]\n\
                contexts: [{name: x, context: {cluster: c, user: u, namespace: shop}}]\npreferences: {}\n";
    for (text, token) in [
        (head.replace("SKIP", "true") + "users: [{name: u, user: {token: abc}}]\ncurrent-context: x\n", "abc"),
        (format!("---\n{head}users:\n- name: u\n  user:\n    token: 0123\n...\n").replace("SKIP", "True"), "0123"),
        (head.replace("SKIP", "true").replace('\n', "\r\n") + "users:\r\n  - {name: u, user: {token: \"abc\\n\"}}\r\n", "abc"),
        (
            json!({
                "kind": "Config", "apiVersion": "v1", "current-context": "x",
                "clusters": [{"name": "c", "cluster": {"server": "https://a:6443", "insecure-skip-tls-verify": true}}],
                "users": [{"name": "u", "user": {"token": "abc", "extensions": [{"name": "e", "extension": {}}]}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            })
            .to_string(),
            "abc",
        ),
    ] {
        fs::write(&path, &text).unwrap();
        let access = Access { kubeconfig: Some(path.clone()), ..Access::default() };
        let connection = kubeconfig::Connection::read(&access).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(connection.server, "https://a:6443");
        assert_eq!(connection.trust, kubeconfig::Trust::Everybody);
        assert_eq!(connection.token.unwrap().0, token);
    }
    // Aliases that stand for each other a billion times over.
    let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for i in 1..10 {
        let of = format!("*a{}", i - 1);
        bomb.extend([format!("a{i}: &a{i} [{}]\n", vec![of; 10].join(","))]);
    }
    fs::write(&path, bomb).unwrap();
    let access = Access { kubeconfig: Some(path), ..Access::default() };
    assert!(kubeconfig::Connection::read(&access).is_err());
}

#[test]
fn annotations_are_honoured_noted_or_refused() {
    let read = |key: &str, value: &str| {
        let mut pod = pod();
        pod["metadata"]["annotations"] = json!({ key: value });
        PodFacts::read(pod.to_string().as_bytes(), &web())
    };
    let ours = |key: &str| format!("cni.projectcalico.org/{key}");
    let spoof =
        read(&ours("allowedSourcePrefixes"), r#"["192.0.2.7/24","198.51.100.1","fd00::/8"]"#).unwrap();
    let nets: Vec<_> = spoof.allowed_source_prefixes.iter().map(ToString::to_string).collect();
    assert_eq!((nets, spoof.notes.len()), (vec!["192.0.2.0/24".to_owned(), "198.51.100.1/32".to_owned()], 1));
    for (key, value, notes) in [
        (ours("ipAddrs"), "[]", 0),
        (ours("ipAddrs"), "", 0),
        (ours("ipv4pools"), "[\"a\"]", 1),
        (ours("ipv6pools"), "[\"a\"]", 1),
        (ours("ipFamilies"), "[\"IPv4\"]", 0),
        (ours("ipFamilies"), "[\"IPv6\"]", 1),
        (ours("containerID"), "abc", 0),
        (ours("podIPs"), "10.77.12.9/32", 0),
        (ours("other"), "x", 1),
        ("qos.projectcalico.org/dscp".to_owned(), "AF11", 1),
        ("example.org/ipAddrs".to_owned(), "x", 0),
    ] {
        assert_eq!(read(&key, value).unwrap().notes.len(), notes, "{key}={value}");
    }
    for (key, value, code) in [
        ("ipAddrs", "10.77.12.9", Code::InvalidConfig),
        ("ipAddrs", r#"["10.77.12.9","10.77.12.10"]"#, Code::InvalidConfig),
        ("ipAddrs", r#"["fd00::1"]"#, Code::InvalidConfig),
        ("ipAddrs", r#"["x"]"#, Code::InvalidConfig),
        ("hwAddr", "x", Code::InvalidConfig),
        ("hwAddr", "01:00:00:00:00:00", Code::InvalidConfig),
        ("allowedSourcePrefixes", r#"["x"]"#, Code::InvalidConfig),
        ("ipFamilies", "IPv4", Code::InvalidConfig),
        ("ipAddrsNoIpam", r#"["10.0.0.1"]"#, Code::UnsupportedField),
        ("floatingIPs", r#"["10.0.0.1"]"#, Code::UnsupportedField),
    ] {
        let error = read(&ours(key), value).unwrap_err();
        assert_eq!(error.code, code, "{key}={value}");
        assert!(error.details.contains(&ours(key)), "{error}");
    }
}

proptest::proptest! {
    #[test]
    fn no_answer_and_no_kubeconfig_panics(bytes: Vec<u8>, text: String) {
        let _ = PodFacts::read(&bytes, &web());
        let mut pod = pod();
        pod["metadata"]["annotations"]["cni.projectcalico.org/ipAddrs"] = json!(text);
        pod["spec"]["containers"][0]["ports"][0]["protocol"] = json!(text);
        let _ = PodFacts::read(pod.to_string().as_bytes(), &web());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kubeconfig");
        for content in [bytes, format!("contexts: [{text}]\nusers: {text}").into_bytes()] {
            fs::write(&path, content).unwrap();
            let access = Access { kubeconfig: Some(path.clone()), ..Access::default() };
            proptest::prop_assert!(kubeconfig::Connection::read(&access).is_err());
        }
    }
}
