import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);
/** The version that is built where none is installed. */
const PINNED = '2.15.2';
const MINIMUM: readonly [number, number] = [2, 10];

/** Folder for what is fetched or built once per machine and user. */
export function cacheDir(): string {
  return join(process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'holdfast');
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
 * A nats-server ≥ 2.10: `NATS_SERVER_BIN`, PATH, the cache, a build with Go, or the distribution's package where it is new
 * enough and may be installed. Throws with what to do when there is none.
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
    await mkdir(folder, { recursive: true });
    await run('go', ['install', `github.com/nats-io/nats-server/v2@v${PINNED}`], {
      env: { ...process.env, GOBIN: folder, GOFLAGS: '' },
      timeout: 900_000,
      maxBuffer: 1 << 24,
    });
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
  throw new Error(
    `nats-server >= ${MINIMUM.join('.')} is needed. Install Go, or put a release from https://github.com/nats-io/nats-server/releases on PATH, or set NATS_SERVER_BIN or NATS_URL.`,
  );
}

function firstLine(error: unknown): string {
  return String(error instanceof Error ? error.message : error).split('\n')[0] ?? '';
}
