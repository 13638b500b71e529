# The image: one binary and the certificate authorities, nothing else; no root user and no shell.
#
#     docker build -t attesto --build-arg VERSION=1.2.3 --build-arg REVISION="$(git rev-parse HEAD)" .
#
# Without access to these base images, use any Debian, given twice:
#
#     docker build -t attesto --build-arg BUILD_IMAGE=debian:bookworm --build-arg RUNTIME_IMAGE=debian:bookworm-slim .
#
# Rust is installed into the first if it is missing. The second needs glibc and libgcc, not older than those of the first.
ARG BUILD_IMAGE=docker.io/library/rust:1.95-slim-bookworm
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${BUILD_IMAGE} AS build
ARG RUST_VERSION=1.95.0
# `dev` builds in a quarter of the time, for testing the image.
ARG PROFILE=release
ENV PATH=/root/.cargo/bin:/usr/local/cargo/bin:$PATH \
    SQLX_OFFLINE=true \
    CARGO_TERM_COLOR=never
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN if ! command -v cc >/dev/null || ! [ -s /etc/ssl/certs/ca-certificates.crt ]; then \
        apt-get update -qq; \
        apt-get install -y -qq --no-install-recommends ca-certificates curl gcc libc6-dev; \
        rm -rf /var/lib/apt/lists/*; \
    fi; \
    if ! command -v cargo >/dev/null; then \
        curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs \
            | sh -s -- -y --no-modify-path --profile minimal --default-toolchain "$RUST_VERSION"; \
    fi

# Dependencies first, with an empty crate: this layer is reused until Cargo.lock changes.
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src/db benches tests/chaos tests/histories tests/hostile; \
    benches=$(sed -n '/^\[\[bench\]\]/{n;s/^name = "\(.*\)"$/benches\/\1.rs/p}' Cargo.toml); \
    for file in src/main.rs src/db/build.rs tests/chaos/main.rs tests/histories/main.rs tests/hostile/main.rs $benches; do echo 'fn main() {}' >"$file"; done; \
    touch src/lib.rs; \
    cargo build --locked --profile "$PROFILE" --bin attesto; \
    rm -rf src benches tests

# Only what is built.
COPY . .
ARG VERSION=
# The version of the release. It changes no dependency, so that their layer is reused.
RUN if [ -n "$VERSION" ]; then \
        sed -i "0,/^version = .*/s//version = \"$VERSION\"/" Cargo.toml; \
        sed -i "/^name = \"attesto\"$/{n;s/^version = .*/version = \"$VERSION\"/}" Cargo.lock; \
    fi; \
    find src migrations -type f -exec touch {} +; \
    cargo build --locked --profile "$PROFILE" --bin attesto; \
    folder=$PROFILE; [ "$folder" != dev ] || folder=debug; \
    install -D "target/$folder/attesto" /image/usr/local/bin/attesto; \
    install -D -m 0644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt; \
    install -D -m 0644 LICENSE /image/usr/local/share/doc/attesto/LICENSE; \
    install -d /data; \
    /image/usr/local/bin/attesto --version

FROM ${RUNTIME_IMAGE}
ARG VERSION=
ARG REVISION=
LABEL org.opencontainers.image.title="Attesto" \
      org.opencontainers.image.description="Self-hosted verification of Apple and Google Play in-app purchases" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build /image/ /
# The initial state of a volume that is mounted here: writable by the image's user.
COPY --from=build --chown=65532:65532 /data/ /var/lib/attesto/
ENV ATTESTO_ENV=production \
    PORT=8080 \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
# A number, so that Kubernetes can see that it is not root.
USER 65532:65532
EXPOSE 8080
# Checks that the process lives. `attesto health --ready` checks that it can serve, which is no reason to restart a container.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s --retries=3 CMD ["/usr/local/bin/attesto", "health"]
ENTRYPOINT ["/usr/local/bin/attesto"]
CMD ["serve"]
