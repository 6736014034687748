.PHONY: run test e2e bench openapi lint prepare prepare-check postgres sqlx-cli

SQLX_VERSION = 0.9.0

# Everything on this machine: `make run ARGS=--fresh`. The dev profile, because it is built sooner.
run: postgres
	cargo run -- dev $(ARGS)

test: postgres
	cargo test --locked $(ARGS)

# Checks that need packages of npm and PyPI, which go into target/e2e: `make e2e CHECKS=python`.
e2e: postgres
	tests/e2e/run $(CHECKS)

# The speed, beside what it is compared to: some twenty minutes. `make bench ARGS="warm export"` for parts of it.
bench: postgres
	benches/speed/find-tools target/bench
	PATH="$$(scripts/find-postgres):$$PATH" cargo bench --locked --bench speed -- $(ARGS)

# Writes the document that the code makes; a test compares.
openapi:
	cargo run --locked -- openapi > docs/openapi.json.new && mv docs/openapi.json.new docs/openapi.json

lint:
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps

# Writes what the `query!` macros know of the schema to `.sqlx`, which is committed: run it after
# changing a query or a migration.
prepare: sqlx-cli
	scripts/with-postgres sh -c 'cargo sqlx migrate run && cargo sqlx prepare -- --all-targets'

# Without `--all-targets` the queries of the tests would pass unseen.
prepare-check: sqlx-cli
	scripts/with-postgres sh -c 'cargo sqlx migrate run && cargo sqlx prepare --check -- --all-targets'

postgres:
	@scripts/find-postgres >/dev/null

# One version for all, or what it writes differs. Unoptimised, because building it takes longer than using it.
sqlx-cli:
	@cargo sqlx --version 2>/dev/null | grep -qF 'sqlx $(SQLX_VERSION)' || \
		cargo install sqlx-cli --version $(SQLX_VERSION) --locked --debug --no-default-features --features postgres,rustls
