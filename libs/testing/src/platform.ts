import { execFile } from 'node:child_process';
import { createHash, createHmac, randomBytes } from 'node:crypto';
import { chmodSync, mkdtempSync, readFileSync } from 'node:fs';
import { realpath, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import pg from 'pg';
import { freePort } from './postgres.ts';

const run = promisify(execFile);
const BIN = fileURLToPath(new URL('../../../bin/src/', import.meta.url));

/** The whole platform as `bin/up` starts it, with a state folder and ports of its own. */
export interface TestPlatform {
  readonly apiUrl: string;
  readonly dashboardUrl: string;
  readonly apiKey: string;
  readonly stateDir: string;
  /** The platform's database, as Postgres' superuser. */
  readonly databaseUrl: string;
  /** The password that the platform derives for a role or user, for example `nats-session`. */
  secret(name: string): string;
  readonly env: Readonly<Record<string, string>>;
  pid(name: string): number;
  /** `kill -9` of one process by its pid file. */
  kill(name: string): void;
  log(name: string): string;
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
    secret: (name) => {
      const secret = /^HOLDFAST_SECRET=(.+)$/m.exec(readFileSync(join(stateDir, 'env'), 'utf8'))?.[1] ?? '';
      return createHmac('sha256', secret).update(name).digest('base64url');
    },
    env,
    pid,
    kill: (name) => process.kill(pid(name), 'SIGKILL'),
    log: (name) => readFileSync(join(stateDir, 'log', `${name}.log`), 'utf8'),
    up,
    maintain: command('log.ts'),
    secondWorkspace: async () => {
      const key = `hf_${randomBytes(32).toString('base64url')}`;
      const client = new pg.Client({ connectionString: platform.databaseUrl });
      await client.connect();
      try {
        await client.query("insert into workspaces (id, name) values ('wrkspc_second', 'Second')");
        await client.query(
          `insert into api_keys (id, workspace_id, name, kind, hash, hint)
           values ('apikey_second', 'wrkspc_second', 'second', 'api_key', $1, 'hf_…')`,
          [createHash('sha256').update(key).digest()],
        );
      } finally {
        await client.end();
      }
      return key;
    },
    stop: async () => {
      await up('--down');
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
