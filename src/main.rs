//! The program: parse the command line, run it. See [`token_vendor::cli`].

fn main() -> std::process::ExitCode {
    token_vendor::cli::main()
}
