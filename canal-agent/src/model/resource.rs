//! Keys of Calico's resources: `/calico/resources/v3/projectcalico.org/<plural>/[<namespace>/]<name>`.

use std::fmt;

/// Prefix of every resource; one list and one watch of it cover all.
pub const PREFIX: &str = "/calico/resources/v3/projectcalico.org/";

macro_rules! kinds {
    ($($variant:ident $plural:literal $namespaced:literal),+ $(,)?) => {
        /// Kinds that mean something here. All others (staged policies, BGP, IPAM, …) are not even parsed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind { $($variant),+ }

        impl Kind {
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant)),+ }
            }

            pub const fn plural(self) -> &'static str {
                match self { $(Self::$variant => $plural),+ }
            }

            pub const fn namespaced(self) -> bool {
                match self { $(Self::$variant => $namespaced),+ }
            }
        }
    };
}

kinds! {
    NetworkPolicy "networkpolicies" true,
    GlobalNetworkPolicy "globalnetworkpolicies" false,
    Tier "tiers" false,
    Profile "profiles" false,
    WorkloadEndpoint "workloadendpoints" true,
    HostEndpoint "hostendpoints" false,
    NetworkSet "networksets" true,
    GlobalNetworkSet "globalnetworksets" false,
}

/// An object's identity is its key; what its metadata claims is not looked at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resource {
    pub kind: Kind,
    /// Empty for kinds without namespace.
    pub namespace: String,
    pub name: String,
}

impl Resource {
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// `None`: not a resource, a kind that means nothing here, or a key of another shape.
    pub fn parse(key: &str) -> Option<Self> {
        let mut segments = key.strip_prefix(PREFIX)?.split('/');
        let plural = segments.next()?;
        let kind = *Kind::ALL.iter().find(|kind| kind.plural() == plural)?;
        let namespace = if kind.namespaced() { segments.next()? } else { "" };
        let name = segments.next()?;
        let whole =
            segments.next().is_none() && !name.is_empty() && kind.namespaced() != namespace.is_empty();
        whole.then(|| Self { kind, namespace: unescape(namespace), name: unescape(name) })
    }

    pub fn key(&self) -> String {
        let separator = if self.kind.namespaced() { "/" } else { "" };
        format!("{PREFIX}{}/{}{separator}{}", self.kind.plural(), escape(&self.namespace), escape(&self.name))
    }
}

/// `GlobalNetworkPolicy edge`, `NetworkPolicy shop/allow-web`.
impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.kind.namespaced() { "/" } else { "" };
        write!(f, "{} {}{separator}{}", self.kind.name(), self.namespace, self.name)
    }
}

/// Calico escapes these two and no others.
fn unescape(segment: &str) -> String {
    segment.replace("%2f", "/").replace("%2F", "/").replace("%25", "%")
}

fn escape(segment: &str) -> String {
    segment.replace('%', "%25").replace('/', "%2f")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_and_write_back() {
        for (rest, kind, namespace, name) in [
            ("networkpolicies/shop/default.allow-web", Kind::NetworkPolicy, "shop", "default.allow-web"),
            ("globalnetworkpolicies/p0", Kind::GlobalNetworkPolicy, "", "p0"),
            ("tiers/default", Kind::Tier, "", "default"),
            ("profiles/kns.shop", Kind::Profile, "", "kns.shop"),
            (
                "workloadendpoints/default/node1-cni-ca-eth0",
                Kind::WorkloadEndpoint,
                "default",
                "node1-cni-ca-eth0",
            ),
            ("globalnetworksets/a%2fb", Kind::GlobalNetworkSet, "", "a/b"),
        ] {
            let key = format!("{PREFIX}{rest}");
            let resource = Resource::new(kind, namespace, name);
            assert_eq!(Resource::parse(&key), Some(resource.clone()));
            assert_eq!(resource.key(), key);
        }
    }

    #[test]
    fn keys_of_another_shape_are_no_resource() {
        for rest in [
            "",
            "globalnetworkpolicies",
            "globalnetworkpolicies/",
            "globalnetworkpolicies/a/b",
            "networkpolicies/a",
            "networkpolicies//b",
            "networkpolicies/a/",
            "networkpolicies/a/b/c",
            "stagedglobalnetworkpolicies/p0",
            "stagednetworkpolicies/a/b",
            "GlobalNetworkPolicies/p0",
        ] {
            assert_eq!(Resource::parse(&format!("{PREFIX}{rest}")), None, "{rest}");
        }
        assert_eq!(Resource::parse("/calico/ipam/v2/config"), None);
        assert_eq!(Resource::parse("calico/resources/v3/projectcalico.org/tiers/default"), None);
    }
}
