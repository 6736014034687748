//! The program: parse the command line, run it. See [`token_vendor::cli`].

// A request is many small pieces of memory, most of them freed by another thread than made them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    token_vendor::cli::main()
}
