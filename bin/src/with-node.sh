# Sourced by the commands in bin/: installs the packages when they are missing or the lockfile changed, and puts
# Node 24 first on PATH (it comes as a package where the machine's own Node is older).
set -eu
cd "$(dirname "$0")/.."
command -v node >/dev/null 2>&1 && command -v npm >/dev/null 2>&1 || {
  echo "holdfast: Node >= 20.19 and npm are needed; see https://nodejs.org" >&2
  exit 1
}
holdfast_lock="$(cksum < package-lock.json) $(cksum < package.json)"
if [ "$(cat node_modules/.holdfast-installed 2>/dev/null || true)" != "$holdfast_lock" ]; then
  echo "holdfast: installing packages (npm install)"
  PATH="$PWD/node_modules/.bin:$PATH" npm install --no-audit --no-fund --loglevel=error
  # npm may write the lockfile anew; what counts is what is installed now.
  echo "$(cksum < package-lock.json) $(cksum < package.json)" > node_modules/.holdfast-installed
fi
PATH="$PWD/node_modules/.bin:$PATH"
export PATH
node -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 24 || (a === 24 && b >= 9) ? 0 : 1)' || {
  echo "holdfast: Node >= 24.9 is needed on this system; found $(node --version)" >&2
  exit 1
}
