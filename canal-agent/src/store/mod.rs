//! Everything between etcd and plain data: the client and its errors, watches, the subnet lease, published
//! objects, and the formats of flannel's keys, values and files. It knows nothing of policy or packets.

pub mod client;
mod dial;
pub mod error;
pub mod history;
pub mod initial;
pub mod json;
pub mod keys;
pub mod lease;
pub mod lease_value;
pub mod machine;
pub mod network;
pub mod options;
pub mod publish;
pub mod retry;
pub mod subnet_file;
pub mod watch;

pub use client::{Entry, Listing, Store};
pub use error::{Cause, StoreError};
pub use history::Past;
pub use keys::{EtcdPrefix, RESOURCES, SubnetKey};
pub use lease::{Attributes, Lease, LeaseError, LeaseEvent, LeaseManager, Terms};
pub use lease_value::{BackendKind, LeaseValue, Owner, VxlanData, own_mac};
pub use network::{Backend, NetworkConfig, NetworkError, VxlanOptions};
pub use options::{Credentials, EtcdOptions, Secret, TlsFiles};
pub use subnet_file::SubnetEnv;
pub use watch::{Change, Mirror, Prefix, StoreEvent};
