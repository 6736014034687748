.PHONY: run test e2e bench openapi lint deny prepare prepare-check postgres sqlx-cli cargo-deny

SQLX_VERSION = 0.9.0
DENY_VERSION = 0.20.2

# Runs everything on this machine: `make run ARGS=--fresh`. Uses the dev profile, which builds faster.
run: postgres
	cargo run -- dev $(ARGS)

test: postgres
	cargo test --locked $(ARGS)

# Runs the checks that need packages from npm and PyPI: `make e2e CHECKS=python`. Installs the packages in target/e2e.
e2e: postgres
	tests/e2e/run $(CHECKS)

# Runs the benchmark, about twenty minutes. `make bench ARGS="warm export"` runs parts of it.
bench: postgres
	benches/speed/find-tools target/bench
	PATH="$$(scripts/find-postgres):$$PATH" cargo bench --locked --bench speed -- $(ARGS)

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
