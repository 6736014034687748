# syntax=docker/dockerfile:1
FROM rust:1.95-bookworm AS build
WORKDIR /src
# The dependencies are a layer of their own: built again only when one of them changes.
COPY .cargo .cargo
COPY Cargo.toml Cargo.lock ./
RUN mkdir src && touch src/lib.rs \
    && cargo build --release --locked --lib \
    && cargo clean --release --package token-vendor
COPY . .
RUN cargo build --release --locked --bin token-vendor

# The C library, root certificates and nothing to log in to: neither shell nor package manager.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/release/token-vendor /usr/local/bin/token-vendor
# By number, so that Kubernetes can tell that it is not root.
USER 65532:65532
# The default, loopback, is out of reach from outside the container.
ENV LISTEN_ADDR=0.0.0.0:8080
EXPOSE 8080
HEALTHCHECK --start-period=30s CMD ["token-vendor", "health"]
ENTRYPOINT ["token-vendor"]
CMD ["serve"]
