#!/usr/bin/env bash
# Build the image for SageMaker and push it to ECR:
#   local_test/build_and_push.sh --account ACCOUNT --region REGION [--repository NAME] [--tag TAG] [--gpu] [--run]
# Without --run it prints the commands. The repository is created if it is not there. Needs Docker and the AWS command line.
# The last line is the image's URI. DOCKER_BUILD_ARGS has what `docker build` needs besides.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  sed -n 's/^#  *\(local_test.*\)/usage: \1/p' "local_test/$(basename "$0")" >&2
  exit 2
}

account='' region=${AWS_DEFAULT_REGION:-} repository=ipinsights kind=cpu tag='' run=''
while [ $# -gt 0 ]; do
  case $1 in
    --account | --region | --repository | --tag) [ $# -gt 1 ] || usage ;;&
    --account) account=$2 && shift ;;
    --region) region=$2 && shift ;;
    --repository) repository=$2 && shift ;;
    --tag) tag=$2 && shift ;;
    --gpu) kind=gpu ;;
    --run) run=yes ;;
    *) usage ;;
  esac
  shift
done
if [ -z "$account" ] || [ -z "$region" ]; then usage; fi

domain=amazonaws.com
case $region in cn-*) domain=amazonaws.com.cn ;; esac
registry=$account.dkr.ecr.$region.$domain
uri=$registry/$repository:${tag:-$kind}

# Print a command, and with --run do it.
try() {
  printf '+'
  printf ' %q' "$@"
  echo
  if [ -n "$run" ]; then "$@"; fi
}

find_repository=(aws ecr describe-repositories --region "$region" --repository-names "$repository")
make_repository=(aws ecr create-repository --region "$region" --repository-name "$repository")
password=(aws ecr get-login-password --region "$region")
login=(docker login --username AWS --password-stdin "$registry")

read -ra more <<<"${DOCKER_BUILD_ARGS:-}"
# Version of the code: the newest tag, and the commits since.
version=$(git describe --tags --match 'v*' 2>/dev/null | sed -e 's/^v//' -e 's/-\(.*\)-g/.post\1+g/' || true)
if [ -n "$version" ]; then more+=(--build-arg "VERSION=$version"); fi
try docker build --platform linux/amd64 "${more[@]}" -f "Dockerfile.$kind" -t "$uri" .

if [ -z "$run" ]; then
  echo "+ ${find_repository[*]} || ${make_repository[*]}"
  echo "+ ${password[*]} | ${login[*]}"
else
  found=$("${find_repository[@]}" 2>&1 >/dev/null) || case $found in
    *RepositoryNotFoundException*) try "${make_repository[@]}" >&2 ;;
    *) echo "$found" >&2 && exit 1 ;;
  esac
  "${password[@]}" | "${login[@]}" >&2
fi
try docker push "$uri"
if [ -z "$run" ]; then echo "# Nothing was done: --run does it"; fi
echo "$uri"
