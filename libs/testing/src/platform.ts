import { execFile, spawn } from 'node:child_process';
import { createHash, createHmac, randomBytes } from 'node:crypto';
import { chmodSync, closeSync, mkdtempSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { realpath, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { connectBus } from '@holdfast/bus';
import type { EnsureSandboxUpdate, SandboxReason } from '@holdfast/contracts';
import pg from 'pg';
import { freePort } from './postgres.ts';

const run = promisify(execFile);
/** So often a held session is told why. */
const HELD_MS = 200;
const BIN = fileURLToPath(new URL('../../../bin/src/', import.meta.url));
const TESTBED = fileURLToPath(new URL('../../../k8s/testbed/src/main.ts', import.meta.url));

/** The whole platform as `bin/up` starts it, with a state folder and ports of its own. */
export interface TestPlatform {
  readonly apiUrl: string;
  readonly dashboardUrl: string;
  readonly apiKey: string;
  readonly stateDir: string;
  /** The platform's database, as Postgres' superuser. */
  readonly databaseUrl: string;
  /** One statement there; returns its rows. */
  query(sql: string, values?: readonly unknown[]): Promise<Record<string, unknown>[]>;
  readonly natsUrl: string;
  /** The password that the platform derives for a role or user, for example `nats-session`. */
  secret(name: string): string;
  readonly env: Readonly<Record<string, string>>;
  pid(name: string): number;
  /** `kill -9` of one process by its pid file. */
  kill(name: string): void;
  log(name: string): string;
  /**
   * Puts another release's process in the place of a service's: starts it beside the old one under the same name and, when
   * it is ready, ends the old one, which may drain. `ready` hears where the new one answers; returns how long the old one
   * took to leave, in milliseconds. Linux only.
   */
  replace(name: string, release: string, ready?: (url: string) => void): Promise<number>;
  up(...flags: string[]): Promise<string>;
  /** `bin/log`; returns what it printed. @throws when its exit code is not 0 */
  maintain(...args: string[]): Promise<string>;
  /** Another tenant with an API key of its own; returns the key. */
  secondWorkspace(): Promise<string>;
  stop(): Promise<void>;
}

export async function startPlatform(settings: Readonly<Record<string, string>> = {}): Promise<TestPlatform> {
  const stateDir = mkdtempSync(join(tmpdir(), 'holdfast-platform-'));
  chmodSync(stateDir, 0o755);
  const names = ['API_PORT', 'DASHBOARD_PORT', 'POSTGRES_PORT', 'NATS_PORT', 'HUB_PORT', 'DEMO_GATEWAY_PORT'];
  const ports = Object.fromEntries(
    await Promise.all(names.map(async (name) => [name, String(await freePort())] as const)),
  );
  // The same specs run on a cluster when the environment names one.
  const cluster = Object.fromEntries(
    ['SANDBOX_PROVIDER', 'SANDBOX_IMAGE', 'SANDBOX_IMAGE_PULL_POLICY', 'KUBECONFIG', 'HUB_HOST'].flatMap((name) =>
      process.env[name] === undefined ? [] : [[name, process.env[name]]],
    ),
  ) as Record<string, string>;
  const apiKey = settings['HOLDFAST_API_KEY'] ?? `hf_${randomBytes(32).toString('base64url')}`;
  const env: Record<string, string> = {
    PATH: process.env.PATH ?? '',
    HOME: process.env.HOME ?? '/',
    ...ports,
    HOLDFAST_STATE_DIR: stateDir,
    HOLDFAST_ENV_FILE: join(stateDir, 'env'),
    HOLDFAST_API_KEY: apiKey,
    LITELLM_GATEWAY_URL: '',
    DATABASE_URL: '',
    NATS_URL: '',
    ...cluster,
    ...settings,
  };
  const command =
    (script: string) =>
    async (...args: string[]): Promise<string> => {
      const { stdout } = await run(process.execPath, ['--no-warnings', join(BIN, script), ...args], {
        env,
        timeout: 240_000,
        maxBuffer: 1 << 24,
      });
      return stdout;
    };
  const up = command('up.ts');
  const pid = (name: string): number => Number(readFileSync(join(stateDir, 'run', `${name}.pid`), 'utf8'));
  const platform: TestPlatform = {
    apiUrl: `http://127.0.0.1:${ports['API_PORT']}`,
    dashboardUrl: `http://127.0.0.1:${ports['DASHBOARD_PORT']}`,
    apiKey,
    stateDir,
    get databaseUrl() {
      return `postgres://postgres:${platform.secret('postgres')}@127.0.0.1:${ports['POSTGRES_PORT']}/holdfast`;
    },
    query: async (sql, values = []) => {
      const client = new pg.Client({ connectionString: platform.databaseUrl });
      await client.connect();
      try {
        return (await client.query<Record<string, unknown>>(sql, [...values])).rows;
      } finally {
        await client.end();
      }
    },
    natsUrl: `nats://127.0.0.1:${ports['NATS_PORT']}`,
    secret: (name) => {
      const secret = /^HOLDFAST_SECRET=(.+)$/m.exec(readFileSync(join(stateDir, 'env'), 'utf8'))?.[1] ?? '';
      return createHmac('sha256', secret).update(name).digest('base64url');
    },
    env,
    pid,
    kill: (name) => process.kill(pid(name), 'SIGKILL'),
    log: (name) => readFileSync(join(stateDir, 'log', `${name}.log`), 'utf8'),
    replace: async (name, release, ready) => {
      const old = pid(name);
      const lines = (file: string): string[] => readFileSync(`/proc/${old}/${file}`, 'utf8').split('\0').slice(0, -1);
      const given: Record<string, string> = {};
      for (const line of lines('environ')) given[line.slice(0, line.indexOf('='))] = line.slice(line.indexOf('=') + 1);
      const portName = given['HEALTH_PORT'] === undefined ? 'API_PORT' : 'HEALTH_PORT';
      const url = `http://127.0.0.1:${await freePort()}`;
      const [node = '', ...args] = lines('cmdline').map((arg) => arg.replace(/^.*(?=\/services\/)/, release));
      const log = openSync(join(stateDir, 'log', `${name}.log`), 'a');
      const environment = { ...given, [portName]: new URL(url).port };
      const child = spawn(node, args, { cwd: release, env: environment, stdio: ['ignore', log, log], detached: true });
      closeSync(log);
      child.unref();
      const isReady = (): Promise<boolean> =>
        fetch(`${url}/readyz`).then(
          ({ ok }) => ok,
          () => false,
        );
      for (const deadline = Date.now() + 30_000; !(await isReady()); await sleep(50))
        if (child.exitCode !== null || Date.now() > deadline)
          throw new Error(`the new ${name} did not become ready:\n${platform.log(name).slice(-2_000)}`);
      ready?.(url);
      // The supervisor takes up what it finds recorded in the place of what ended.
      const record = (file: string): string => join(stateDir, 'run', `${name}.${file}`);
      const facts = JSON.parse(readFileSync(record('json'), 'utf8')) as object;
      const startTime = startTimeOf(child.pid ?? 0);
      writeFileSync(record('json'), JSON.stringify({ ...facts, pid: child.pid, startTime }));
      writeFileSync(record('pid'), `${child.pid}\n`);
      const began = Date.now();
      const oldStarted = startTimeOf(old);
      process.kill(old, 'SIGTERM');
      while (startTimeOf(old) === oldStarted) await sleep(20);
      return Date.now() - began;
    },
    up,
    maintain: command('log.ts'),
    secondWorkspace: async () => {
      const key = `hf_${randomBytes(32).toString('base64url')}`;
      await platform.query("insert into workspaces (id, name) values ('wrkspc_second', 'Second')");
      await platform.query(
        `insert into api_keys (id, workspace_id, name, kind, hash, hint)
         values ('apikey_second', 'wrkspc_second', 'second', 'api_key', $1, 'hf_…')`,
        [createHash('sha256').update(key).digest()],
      );
      return key;
    },
    stop: async () => {
      const installation = onCluster(env) ? await installationOf(platform.databaseUrl) : null;
      await up('--down');
      if (installation !== null)
        await run(process.execPath, ['--no-warnings', TESTBED, 'sweep', installation], { timeout: 120_000 });
      // A server that its user could not enter here keeps its data elsewhere; a link tells where.
      const data = join(stateDir, 'data', 'postgres');
      const home = await realpath(data).catch(() => data);
      if (
        home !==
        (await realpath(dirname(data)).then(
          (folder) => join(folder, 'postgres'),
          () => data,
        ))
      )
        await rm(dirname(home), { recursive: true, force: true });
      await rm(stateDir, { recursive: true, force: true });
    },
  };
  try {
    await up('--detach');
  } catch (error) {
    await platform.stop();
    throw error;
  }
  return platform;
}

/**
 * Stops the sandbox service where it stands and, in its place, tells whoever needs a sandbox why there is none, as a
 * cluster does that is full. Released, the service goes on and does what it was asked meanwhile.
 */
export async function holdSandboxes(
  platform: TestPlatform,
  first: SandboxReason,
): Promise<{ tell(reason: SandboxReason): void; release(): Promise<void> }> {
  const bus = await connectBus({
    servers: platform.natsUrl,
    user: 'sandbox',
    password: platform.secret('nats-sandbox'),
    name: 'spec',
  });
  const pid = platform.pid('sandbox');
  process.kill(pid, 'SIGSTOP');
  let reason = first;
  let held = true;
  bus.replyMany<unknown, EnsureSandboxUpdate>('cmd.sandbox.*.ensure', {}, async (_body, _context, send) => {
    for (; held; await sleep(HELD_MS)) send({ kind: 'waiting', reason });
  });
  await bus.flush();
  return {
    tell: (next) => {
      reason = next;
    },
    release: async () => {
      held = false;
      process.kill(pid, 'SIGCONT');
      await bus.close();
    },
  };
}

/** The kernel's start time of a process; empty when it has ended. */
function startTimeOf(pid: number): string {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return fields[0] === 'Z' ? '' : (fields[19] ?? '');
  } catch {
    return '';
  }
}

const onCluster = (env: Readonly<Record<string, string>>): boolean => env['SANDBOX_PROVIDER'] === 'kubernetes';

/** What the platform's objects on a cluster are labelled with; null when it never came so far. */
async function installationOf(databaseUrl: string): Promise<string | null> {
  const client = new pg.Client({ connectionString: databaseUrl });
  try {
    await client.connect();
    const { rows } = await client.query<{ id: string }>('select id from sandbox_installation');
    return rows[0]?.id ?? null;
  } catch {
    return null;
  } finally {
    await client.end();
  }
}
