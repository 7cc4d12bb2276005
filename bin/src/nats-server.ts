import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, rename, rm, writeFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);
/** The version that is built where none is installed. */
const PINNED = '2.15.2';
/** Official release archives by SHA-256, as nats-io/nats-docker pins them (2.15.x/alpine3.22/Dockerfile). */
export const RELEASE = {
  version: '2.15.0',
  sha256: {
    'linux-arm64': 'cdc208f5a3f42963a52b6ab06ef65626bb870315dc936e26ba571780c6351112',
    'linux-amd64': '5d2c51caca950333aba84911df7d377f826f3a59ec36061c6539105084f65c92',
  } as Readonly<Record<string, string>>,
};
const RELEASES_URL = 'https://github.com/nats-io/nats-server/releases/download';
const MINIMUM: readonly [number, number] = [2, 10];

/** Folder for what is fetched or built once per machine and user. */
export function cacheDir(): string {
  return join(process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'holdfast');
}

/** Builds a Go program, `module/path@version`, into a folder. @throws Error what Go says, or that there is none */
export async function buildWithGo(program: string, folder: string): Promise<void> {
  await mkdir(folder, { recursive: true });
  await run('go', ['install', program], {
    env: { ...process.env, GOBIN: folder, GOFLAGS: '' },
    timeout: 900_000,
    maxBuffer: 1 << 24,
  });
}

/** True when the binary runs and is at least 2.10. */
async function isUsable(binary: string): Promise<boolean> {
  try {
    const { stdout } = await run(binary, ['--version'], { timeout: 10_000 });
    const [, major, minor] = /v?(\d+)\.(\d+)\./.exec(stdout) ?? [];
    return Number(major) > MINIMUM[0] || (Number(major) === MINIMUM[0] && Number(minor) >= MINIMUM[1]);
  } catch {
    return false;
  }
}

/**
 * A nats-server ≥ 2.10: `NATS_SERVER_BIN`, PATH, the cache, a build with Go, the distribution's package where it is new
 * enough and may be installed, or the official release by its checksum. Throws with what to do when there is none.
 */
export async function findNatsServer(log: (line: string) => void): Promise<string> {
  const given = process.env.NATS_SERVER_BIN;
  if (given !== undefined && given !== '') {
    if (await isUsable(given)) return given;
    throw new Error(`NATS_SERVER_BIN=${given} is no nats-server >= ${MINIMUM.join('.')}`);
  }
  if (await isUsable('nats-server')) return 'nats-server';
  const folder = join(cacheDir(), `nats-server-${PINNED}`);
  const cached = join(folder, 'nats-server');
  if (existsSync(cached) && (await isUsable(cached))) return cached;
  try {
    await run('go', ['version']);
    log(`building nats-server ${PINNED} with Go (once, about a minute)`);
    await buildWithGo(`github.com/nats-io/nats-server/v2@v${PINNED}`, folder);
    if (await isUsable(cached)) return cached;
  } catch (error) {
    log(`no build with Go: ${firstLine(error)}`);
  }
  if (process.getuid?.() === 0 && existsSync('/usr/bin/apt-get')) {
    try {
      const { stdout } = await run('apt-cache', ['policy', 'nats-server']);
      const [, major, minor] = /Candidate: (\d+)\.(\d+)\./.exec(stdout) ?? [];
      if (Number(major) > MINIMUM[0] || Number(minor) >= MINIMUM[1]) {
        log("installing the distribution's nats-server");
        await run('apt-get', ['install', '-y', 'nats-server'], {
          env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' },
          timeout: 300_000,
        });
        if (await isUsable('nats-server')) return 'nats-server';
      } else {
        log("the distribution's nats-server is too old");
      }
    } catch (error) {
      log(`the distribution's package could not be installed: ${firstLine(error)}`);
    }
  }
  try {
    log(`fetching the official nats-server ${RELEASE.version}`);
    const fetched = await fetchRelease(join(cacheDir(), `nats-server-${RELEASE.version}`));
    if (await isUsable(fetched)) return fetched;
  } catch (error) {
    log(`the official release could not be had: ${firstLine(error)}`);
  }
  throw new Error(
    `nats-server >= ${MINIMUM.join('.')} is needed. Install Go, or put a release from https://github.com/nats-io/nats-server/releases on PATH, or set NATS_SERVER_BIN or NATS_URL.`,
  );
}

/**
 * The release's binary in `folder`, fetched unless it is there. Nothing is unpacked before its checksum was found right.
 * @throws Error when it cannot be fetched, is not the pinned archive, or there is none for this machine
 */
export async function fetchRelease(folder: string, releasesUrl: string = RELEASES_URL): Promise<string> {
  const binary = join(folder, 'nats-server');
  if (existsSync(binary)) return binary;
  const platform = `${process.platform}-${process.arch === 'x64' ? 'amd64' : process.arch}`;
  const wanted = RELEASE.sha256[platform];
  if (wanted === undefined) throw new Error(`no release is pinned for ${platform}`);
  const name = `nats-server-v${RELEASE.version}-${platform}`;
  const url = `${releasesUrl}/v${RELEASE.version}/${name}.tar.gz`;
  const response = await fetch(url, { signal: AbortSignal.timeout(120_000) });
  if (!response.ok) throw new Error(`${url} answered ${response.status}`);
  const archive = Buffer.from(await response.arrayBuffer());
  const found = createHash('sha256').update(archive).digest('hex');
  if (found !== wanted) throw new Error(`${url} has SHA-256 ${found}, not ${wanted}`);
  await mkdir(folder, { recursive: true });
  const scratch = await mkdtemp(join(folder, 'unpack-'));
  try {
    await writeFile(join(scratch, 'archive.tar.gz'), archive);
    await run('tar', ['-xzf', 'archive.tar.gz'], { cwd: scratch });
    await rename(join(scratch, name, 'nats-server'), binary);
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
  return binary;
}

function firstLine(error: unknown): string {
  return String(error instanceof Error ? error.message : error).split('\n')[0] ?? '';
}
