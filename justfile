# Recipes for everyday work; `just` lists them. Everything also works without just: see ./dev --help.

_default:
    @just --list

# Build and run the whole pipeline here, with dashboard on 127.0.0.1:8080.
demo *args:
    ./dev demo {{args}}

# Every test, release profile. Real brokers: just brokers-up, then . target/brokers/env
test *args:
    ./dev test {{args}}

# Formatting and lints, as CI runs them.
check:
    ./dev check

# All that CI does, on this machine (installs Debian packages that are missing).
ci:
    .ci/run

# Regenerate the JSON Schemas and the AsyncAPI document from the Rust types.
schemas:
    cargo run --release -- schema write

# Train the committed models again; the files must not change (the script is reproducible).
models *args:
    scripts/train-models.sh {{args}}

# Apache Kafka and Mosquitto on loopback; prints the file to source.
brokers-up:
    tests/brokers/up.sh
    @echo ". target/brokers/env"

brokers-down:
    tests/brokers/down.sh
