.PHONY: run install test e2e chaos bench fuzz openapi lint deny prepare prepare-check postgres sqlx-cli cargo-deny cargo-fuzz cargo-cyclonedx

SQLX_VERSION = 0.9.0
DENY_VERSION = 0.20.2
FUZZ_VERSION = 0.13.2
CYCLONEDX_VERSION = 0.5.9

# `make test PG=/path/to/bin` runs the tests on the Postgres with these programs. Works for the other targets too.
ifdef PG
export PG_BIN := $(abspath $(PG))
endif

# Runs everything on this machine: `make run ARGS=--fresh`. Uses the dev profile, which builds faster.
run: postgres
	cargo run -- dev $(ARGS)

# Installs the program, its man pages and its completions below DESTDIR and PREFIX. `BINARY=PATH` installs a program that
# is already built.
PREFIX = /usr/local
install:
ifndef BINARY
	cargo build --release --locked --bin token-vendor
endif
	scripts/install-files "$(or $(BINARY),$(or $(CARGO_TARGET_DIR),target)/release/token-vendor)" "$(DESTDIR)$(PREFIX)"

test: postgres
	cargo test --locked $(ARGS)

# Runs the checks that need packages from npm, PyPI and Debian: `make e2e CHECKS=python`. Installs them in target/.
e2e: postgres
	tests/e2e/run $(CHECKS)

# Runs the tests that need root, network namespaces, PgBouncer or minutes: `make chaos ARGS=network`. Tests that cannot
# run here say so and pass.
chaos: postgres
	scripts/chaos $(ARGS)

# Runs the benchmark, about 32 minutes. `make bench ARGS="warm export"` runs parts of it.
bench: postgres
	benches/speed/find-tools target/bench
	PATH="$$(scripts/find-postgres):$$PATH" cargo bench --locked --bench speed -- $(ARGS)

# Runs each fuzz target for a minute: `make fuzz FUZZ_SECONDS=600`. Needs a nightly toolchain. New inputs go to
# fuzz/target/corpus, and an input that fails goes to fuzz/artifacts. Copy inputs worth keeping to fuzz/corpus.
FUZZ_SECONDS = 60
fuzz: cargo-fuzz
	for target in $$(cargo +nightly fuzz list); do \
		mkdir -p fuzz/target/corpus/$$target && \
		cargo +nightly fuzz run $$target fuzz/target/corpus/$$target fuzz/corpus/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -max_len=16384 || exit; \
	done

# Writes docs/openapi.json from the code. A test compares the two.
openapi:
	cargo run --locked -- openapi > docs/openapi.json.new && mv docs/openapi.json.new docs/openapi.json

lint:
	scripts/check-prose
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps

# Checks licences, bans, sources and advisories of the dependencies: deny.toml. Fetches the advisory database.
deny: cargo-deny
	cargo deny --locked check

# Updates .sqlx, the query metadata for offline builds. Run it after you change a query or a migration, and commit
# the result.
prepare: sqlx-cli
	scripts/with-postgres sh -c 'cargo sqlx migrate run && cargo sqlx prepare -- --all-targets'

# `--all-targets` includes the queries of the tests.
prepare-check: sqlx-cli
	scripts/with-postgres sh -c 'cargo sqlx migrate run && cargo sqlx prepare --check -- --all-targets'

postgres:
	@scripts/find-postgres >/dev/null

# Pins one version, because other versions write other files. Builds without optimisation to save time.
sqlx-cli:
	@cargo sqlx --version 2>/dev/null | grep -qF 'sqlx $(SQLX_VERSION)' || \
		cargo install sqlx-cli --version $(SQLX_VERSION) --locked --debug --no-default-features --features postgres,rustls

# Installs one version for all, because a later one may reject deny.toml.
cargo-deny:
	@cargo deny --version 2>/dev/null | grep -qxF 'cargo-deny $(DENY_VERSION)' || \
		cargo install cargo-deny --version $(DENY_VERSION) --locked

# Installs one version for all, because the options of `cargo fuzz` change.
cargo-fuzz:
	@cargo fuzz --version 2>/dev/null | grep -qxF 'cargo-fuzz $(FUZZ_VERSION)' || \
		cargo install cargo-fuzz --version $(FUZZ_VERSION) --locked

# Installs one version for all, because other versions write other files.
cargo-cyclonedx:
	@cargo cyclonedx --version 2>/dev/null | grep -qF 'cyclonedx $(CYCLONEDX_VERSION)' || \
		cargo install cargo-cyclonedx --version $(CYCLONEDX_VERSION) --locked
