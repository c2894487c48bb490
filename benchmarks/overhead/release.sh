#!/usr/bin/env bash
# The release as a plain script, as one is written for a CI job: the flow is compared with it.
# Needs REPOSITORY, IMAGE, STAGING, PRODUCTION, BUILD_OPTIONS, STAGES (a file that gets a line per stage).
set -euo pipefail

stage() { echo "$(date +%s.%N) $1" >> "$STAGES"; }
url_of() { echo "http://$(kubectl -n "$1" get service shop -o 'jsonpath={.spec.clusterIP}')"; }
deploy() { # FOLDER NAMESPACE ENVIRONMENT
  stage "apply to $3"
  sed -i "s|image: $IMAGE.*|image: $image|" "$1"/*.yaml
  kubectl apply -n "$2" -f "$1"
  stage "rollout of $3"
  kubectl -n "$2" rollout status deployment/shop --timeout=10m
}

stage checkout
git clone --quiet --branch main "$REPOSITORY" checkout
cd checkout
version=$(git rev-parse --short=7 HEAD)
image=$IMAGE:$(git rev-parse HEAD)

stage "build and push"
# shellcheck disable=SC2086  # several words on purpose
buildah build $BUILD_OPTIONS --build-arg "VERSION=$version" --tag "$image" app
buildah push --tls-verify=false "$image"

stage "unit tests"
python3 -m pytest tests/unit --junitxml=junit.xml

deploy k8s/staging "$STAGING" staging
stage "E2E on staging" # the plugin starts the browser of PREFECT_CD_BROWSER with the same flags on both sides
BASE_URL=$(url_of "$STAGING") EXPECTED_VERSION=$version \
  python3 -m pytest tests/e2e -p prefect_cd.gates.browser.plugin --browser chromium --tracing on --junitxml=e2e.xml

deploy k8s/production "$PRODUCTION" production
stage "smoke on production"
curl --fail --silent --show-error --retry 5 --retry-all-errors "$(url_of "$PRODUCTION")/api/products" > products.json
curl --fail --silent --show-error "$(url_of "$PRODUCTION")/" | grep 'Add to cart' > /dev/null
stage end
