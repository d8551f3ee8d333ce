//! The CNI plugin; see the library's `cni`.

fn main() -> std::process::ExitCode {
    canal_agent::cni::main()
}
