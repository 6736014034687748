//! The `token-vendor` program. See [`token_vendor::cli`] for its commands.

// A request makes many small allocations, and most are freed on another thread. mimalloc handles that
// pattern well.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    token_vendor::cli::main()
}
