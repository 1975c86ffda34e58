# One static binary and nothing else: no shell, no certificates, no package manager.
# CA roots are a setting, not part of the image: mount them and name them in KESWARDEN_VAULT_CACERT and its like.
ARG COMMIT=0000000000000000000000000000000000000000

FROM rust:1.95-alpine AS build
RUN apk add --no-cache musl-dev build-base
WORKDIR /src
COPY . .
ARG COMMIT
ENV KESWARDEN_COMMIT=$COMMIT
RUN cargo build --release --locked && install -D target/release/keswarden /out/keswarden

FROM scratch
ARG COMMIT
LABEL org.opencontainers.image.title="keswarden" \
      org.opencontainers.image.description="A gate, a KES-compatible key server and a guard for MinIO's encryption keys" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision=$COMMIT
COPY --from=build /out/keswarden /keswarden
# So that `kubectl exec … -- keswarden key …` finds it, as messages print it.
ENV PATH=/
USER 65532:65532
EXPOSE 7373 7374
ENTRYPOINT ["/keswarden"]
CMD ["run"]
