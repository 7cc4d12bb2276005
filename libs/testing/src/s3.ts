import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { buildWithGo, cacheDir } from '../../../bin/src/nats-server.ts';
import { freePort } from './postgres.ts';
import { testRunDir } from './shared-server.ts';

const MODULE = 'github.com/versity/versitygw/cmd/versitygw';
const VERSION = '1.8.0';
const START_MS = 30_000;

/** The settings of the platform's blob store that lead to the server. */
export interface S3Settings {
  readonly BLOB_S3_ENDPOINT: string;
  readonly BLOB_S3_BUCKET: string;
  readonly BLOB_S3_PATH_STYLE: 'true';
  readonly BLOB_S3_ACCESS_KEY_ID: string;
  readonly BLOB_S3_SECRET_ACCESS_KEY: string;
}

export interface S3Server {
  readonly settings: S3Settings;
  /** The bucket as a folder: an object's key is its path. */
  readonly folder: string;
  stop(): Promise<void>;
}

/**
 * A real S3 server on loopback with one empty bucket: versitygw over a folder. `VERSITYGW_BIN`, else one that is built
 * once with Go (a minute) and kept in the cache folder.
 */
export async function startS3(): Promise<S3Server> {
  const binary = await findVersityGateway();
  const dir = await mkdtemp(join(testRunDir(), 's3-'));
  const bucket = 'holdfast';
  const folder = join(dir, 'buckets', bucket);
  await mkdir(folder, { recursive: true });
  await mkdir(join(dir, 'metadata'));
  const port = await freePort();
  const endpoint = `http://127.0.0.1:${port}`;
  const credentials = { BLOB_S3_ACCESS_KEY_ID: 'spec-access', BLOB_S3_SECRET_ACCESS_KEY: 'spec-secret' } as const;
  const child = spawn(
    binary,
    [
      '--port',
      `127.0.0.1:${port}`,
      '--quiet',
      '--health',
      '/health',
      'posix',
      '--sidecar',
      join(dir, 'metadata'),
    ].concat(join(dir, 'buckets')),
    {
      stdio: 'ignore',
      env: {
        ROOT_ACCESS_KEY: credentials.BLOB_S3_ACCESS_KEY_ID,
        ROOT_SECRET_KEY: credentials.BLOB_S3_SECRET_ACCESS_KEY,
      },
    },
  );
  const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  for (const deadline = Date.now() + START_MS; ; await sleep(20)) {
    const answer = await fetch(`${endpoint}/health`).catch(() => null);
    if (answer?.ok === true) break;
    if (child.exitCode !== null || Date.now() > deadline) throw new Error(`${binary} did not start as an S3 server`);
  }
  return {
    settings: { BLOB_S3_ENDPOINT: endpoint, BLOB_S3_BUCKET: bucket, BLOB_S3_PATH_STYLE: 'true', ...credentials },
    folder,
    stop: async () => {
      child.kill('SIGTERM');
      const late = setTimeout(() => child.kill('SIGKILL'), 5_000);
      await exited;
      clearTimeout(late);
    },
  };
}

async function findVersityGateway(): Promise<string> {
  const given = process.env.VERSITYGW_BIN;
  if (given !== undefined && given !== '') return given;
  const folder = join(cacheDir(), `versitygw-${VERSION}`);
  const cached = join(folder, 'versitygw');
  if (existsSync(cached)) return cached;
  // Past jest, which holds a spec's output back until it ends.
  process.stderr.write(`   building versitygw ${VERSION} with Go (once, about a minute)\n`);
  try {
    await buildWithGo(`${MODULE}@v${VERSION}`, folder);
  } catch (error) {
    throw new Error(
      `An S3 server is needed: install Go >= 1.26, or name a versitygw in VERSITYGW_BIN. ${String(error)}`,
    );
  }
  return cached;
}
