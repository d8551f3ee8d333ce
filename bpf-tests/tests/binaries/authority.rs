//! Certificates made for one test, by `openssl`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use bpf_tests::Cmd;

const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";

/// Two authorities; `server` and `client` belong to the first, `stranger` to the second.
pub(crate) struct Authority(PathBuf);

impl Authority {
    pub(crate) fn in_folder(folder: &Path) -> Self {
        let authority = Self(folder.join("certificates"));
        fs::create_dir(&authority.0).unwrap();
        for name in ["ca", "other-ca"] {
            let (key, pem) = (authority.path(&format!("{name}.key")), authority.path(&format!("{name}.pem")));
            openssl(&format!("req -x509 {KEY} -days 2 -subj /CN={name} -keyout {key} -out {pem}"));
        }
        for (name, ca) in [("server", "ca"), ("client", "ca"), ("stranger", "other-ca")] {
            let path = |ending: &str| authority.path(&format!("{name}.{ending}"));
            let extensions = authority.path("extensions");
            fs::write(
                &extensions,
                "subjectAltName=IP:192.168.60.254\nextendedKeyUsage=serverAuth,clientAuth\n",
            )
            .unwrap();
            let (key, request, pem) = (path("key"), path("csr"), path("pem"));
            openssl(&format!("req {KEY} -subj /CN={name} -keyout {key} -out {request}"));
            let (ca, ca_key) = (authority.path(&format!("{ca}.pem")), authority.path(&format!("{ca}.key")));
            openssl(&format!(
                "x509 -req -in {request} -CA {ca} -CAkey {ca_key} -CAcreateserial -days 2 -extfile {extensions} -out {pem}"
            ));
        }
        authority
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

fn openssl(arguments: &str) {
    Cmd::line(&format!("openssl {arguments}")).run().unwrap();
}
