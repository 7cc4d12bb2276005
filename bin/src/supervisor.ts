import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { createConnection } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { natsServerConfig } from '@holdfast/bus';
import { type Harnesses, prepareHarnesses } from './harnesses.ts';
import { findNatsServer } from './nats-server.ts';
import {
  bootstrap,
  forgetForeignLock,
  migrate,
  postgresAnswers,
  prepareDatabase,
  preparePostgres,
  roleUrl,
  superuserUrl,
} from './postgres.ts';
import { Keeper, type ProcessPlan, RunFolder } from './processes.ts';
import {
  derivedSecret,
  loadSettings,
  namedValues,
  natsLogin,
  natsPasswords,
  ROOT,
  replicas,
  type Settings,
} from './settings.ts';

const NODE = process.execPath;

/** What `bin/up` reads of the supervisor: `run/status.json`. */
export interface SupervisorStatus {
  readonly phase: string;
  readonly ready: boolean;
  readonly failed: string | null;
  /** Health endpoint of each service process. */
  readonly health: Readonly<Record<string, string>>;
}

const settings = loadSettings();
const folder = new RunFolder(settings.stateDir);
const buildId = process.env.HOLDFAST_BUILD_ID ?? '';
/** For maintenance of the log: Postgres, NATS and the schema, and nothing that writes. */
const serversOnly = process.env.HOLDFAST_SERVERS_ONLY === '1';
const keepers: Keeper[] = [];
let health: Record<string, string> = {};
let stopping = false;

function log(line: string): void {
  console.log(`${new Date().toISOString()} ${line}`);
}
function status(phase: string, extra: Partial<SupervisorStatus> = {}): void {
  log(phase);
  const now: SupervisorStatus = { phase, ready: false, failed: null, health, ...extra };
  writeFileSync(join(folder.dir, 'status.json'), JSON.stringify(now));
}

/** The environment that every process starts from: ours alone, not everything that the terminal had. */
function baseEnv(): Record<string, string> {
  const kept = [
    'PATH',
    'HOME',
    'LANG',
    'TZ',
    'NODE_EXTRA_CA_CERTS',
    'SSL_CERT_FILE',
    'NODE_OPTIONS',
    'HTTPS_PROXY',
    'HTTP_PROXY',
    'NO_PROXY',
  ];
  const env: Record<string, string> = {
    NODE_ENV: 'production',
    LOG_LEVEL: settings.values.LOG_LEVEL ?? 'info',
    HOLDFAST_STATE_DIR: settings.stateDir,
  };
  for (const name of kept) if (settings.values[name] !== undefined) env[name] = settings.values[name];
  return env;
}

function keep(plan: Omit<ProcessPlan, 'fingerprint'>): Keeper {
  const fingerprint = createHash('sha256')
    .update(JSON.stringify([plan.command, plan.args, plan.env, buildId]))
    .digest('hex');
  const keeper = new Keeper({ ...plan, fingerprint }, folder, log);
  keepers.push(keeper);
  keeper.start();
  return keeper;
}

async function waitFor(what: string, check: () => Promise<boolean>, timeoutMs: number, name: string): Promise<void> {
  for (const deadline = Date.now() + timeoutMs; Date.now() < deadline; await sleep(50)) {
    if (stopping || (await check())) return;
  }
  throw new Error(
    `${what} did not come up within ${timeoutMs / 1000} s. Its log, ${folder.logFile(name)}, ends with:\n  ${folder.lastLines(name, 8).join('\n  ')}`,
  );
}

const portAnswers = (port: number): Promise<boolean> =>
  new Promise((resolve) => {
    const socket = createConnection({ port, host: '127.0.0.1' }, () => {
      socket.destroy();
      resolve(true);
    });
    socket.on('error', () => resolve(false));
  });

/** A port that another program has would answer our health checks in our place. @throws Error that names them all */
async function refuseTakenPorts(): Promise<void> {
  const { ports } = settings;
  const wanted: [process: string, setting: string, port: number][] = [
    ...((settings.values.DATABASE_URL ?? '') === ''
      ? [['postgres', 'POSTGRES_PORT', ports.postgres] satisfies [string, string, number]]
      : []),
    ...((settings.values.NATS_URL ?? '') === ''
      ? [['nats', 'NATS_PORT', ports.nats] satisfies [string, string, number]]
      : []),
    ['gateway-api', 'API_PORT', ports.api],
    ['dashboard', 'DASHBOARD_PORT', ports.dashboard],
    ...(settings.demoGateway
      ? [['demo-gateway', 'DEMO_GATEWAY_PORT', ports.demoGateway] satisfies [string, string, number]]
      : []),
  ];
  const taken = await Promise.all(
    wanted.map(async ([name, setting, port]) =>
      folder.find(name) === null && (await portAnswers(port))
        ? `port ${port} is in use by another program: set ${setting}`
        : null,
    ),
  );
  const faults = taken.filter((fault) => fault !== null);
  if (faults.length > 0) throw new Error(faults.join('\n  '));
}

async function startPostgres(): Promise<void> {
  if ((settings.values.DATABASE_URL ?? '') !== '') {
    status('waiting for your Postgres');
    await waitFor(
      'Postgres at DATABASE_URL',
      () => postgresAnswers(settings.values.DATABASE_URL ?? ''),
      30_000,
      'postgres',
    );
    return;
  }
  status('starting Postgres');
  const local = await preparePostgres(settings);
  if (folder.find('postgres') === null) forgetForeignLock(local.dataDir);
  const options = [
    `port=${settings.ports.postgres}`,
    'listen_addresses=127.0.0.1',
    'unix_socket_directories=',
    'max_connections=200',
    'shared_buffers=64MB',
    'logging_collector=off',
  ];
  keep({
    name: 'postgres',
    command: join(local.bin, 'postgres'),
    args: ['-D', local.dataDir, ...options.flatMap((option) => ['-c', option])],
    env: { PATH: settings.values.PATH ?? '', LANG: 'C' },
    cwd: local.dataDir,
    ...(local.uid === undefined ? {} : { uid: local.uid }),
    ...(local.gid === undefined ? {} : { gid: local.gid }),
    // Fast shutdown: open transactions are rolled back.
    stopSignal: 'SIGINT',
    stopGraceMs: 20_000,
  });
  await waitFor('Postgres', () => postgresAnswers(superuserUrl(settings)), 60_000, 'postgres');
  await prepareDatabase(settings);
}

async function startNats(): Promise<void> {
  if ((settings.values.NATS_URL ?? '') !== '') return;
  status('starting NATS');
  const binary = await findNatsServer((line) => status(line));
  const config = join(settings.stateDir, 'run', 'nats.conf');
  mkdirSync(join(settings.stateDir, 'data', 'nats'), { recursive: true, mode: 0o700 });
  writeFileSync(
    config,
    natsServerConfig({
      host: '127.0.0.1',
      port: settings.ports.nats,
      storeDir: join(settings.stateDir, 'data', 'nats'),
      passwords: natsPasswords(settings),
    }),
    { mode: 0o600 },
  );
  keep({
    name: 'nats',
    command: binary,
    args: ['-c', config],
    env: { PATH: settings.values.PATH ?? '', HOME: settings.values.HOME ?? '/' },
    cwd: settings.stateDir,
    stopSignal: 'SIGTERM',
    stopGraceMs: 10_000,
  });
  await waitFor('NATS', () => portAnswers(settings.ports.nats), 30_000, 'nats');
}

async function prepareSchema(): Promise<void> {
  status('bringing the schema up to date');
  await migrate(settings, baseEnv());
  if (!serversOnly) await bootstrap(settings, baseEnv());
}

function startServices(current: Settings, harnesses: Harnesses): void {
  status('starting the services');
  const { ports } = current;
  const service = (name: string, entry: string, env: Record<string, string>, readyUrl: string): void => {
    health = { ...health, [name]: readyUrl };
    keep({
      name,
      command: NODE,
      args: ['--max-semi-space-size=8', join(ROOT, entry)],
      env: { ...baseEnv(), ...env, HOLDFAST_INSTANCE: name },
      cwd: ROOT,
      stopSignal: 'SIGTERM',
      stopGraceMs: 15_000,
    });
  };
  const demoGatewayUrl = `http://127.0.0.1:${ports.demoGateway}`;
  const modelEnv = current.demoGateway
    ? { LITELLM_GATEWAY_URL: demoGatewayUrl, DEMO_GATEWAY_URL: demoGatewayUrl }
    : {
        LITELLM_GATEWAY_URL: current.values.LITELLM_GATEWAY_URL ?? '',
        LITELLM_API_KEY: current.values.LITELLM_API_KEY ?? '',
      };
  if (current.demoGateway)
    service(
      'demo-gateway',
      'bin/src/demo-gateway/main.ts',
      { DEMO_GATEWAY_PORT: String(ports.demoGateway) },
      `${demoGatewayUrl}/healthz`,
    );
  const named = (base: string, n: number): string => (n === 1 ? base : `${base}-${n}`);
  // Health endpoints lie above the API's port, out of the way of the ports that people choose.
  const healthPort = (block: number, n: number): number => ((ports.api + 1_000 + block * 20 + n) % 64_000) + 1_024;
  for (let n = 1; n <= replicas(current, 'session'); n++) {
    const port = healthPort(0, n);
    service(
      named('session', n),
      'services/session/dist/main.js',
      {
        DATABASE_URL: roleUrl(current, 'session'),
        ...natsLogin(current, 'session'),
        ...modelEnv,
        HARNESSES: harnesses.enabled,
        ...namedValues(
          current,
          /^(TURN_|MODEL_|MCP_|TOOL_|SANDBOX_WAIT_MS$|WEB_FETCH_|WORK_LEASE_MS$|MAX_TURNS$|BLOB_|FILE_)/,
        ),
        HEALTH_PORT: String(port),
      },
      `http://127.0.0.1:${port}/readyz`,
    );
  }
  if (existsSync(join(ROOT, 'services/sandbox/dist/main.js'))) {
    for (let n = 1; n <= replicas(current, 'sandbox'); n++) {
      const port = healthPort(1, n);
      service(
        named('sandbox', n),
        'services/sandbox/dist/main.js',
        {
          DATABASE_URL: roleUrl(current, 'sandbox'),
          ...natsLogin(current, 'sandbox'),
          ...modelEnv,
          HARNESS_DIR: harnesses.folder,
          ...namedValues(
            current,
            /^(CONTAINER_ENV_|SANDBOX_|CHECKPOINT_(?!KEY)|MODEL_SILENCE_MS$|HUB_|HOLDFAST_ALLOW_UNISOLATED$|BLOB_|KUBECONFIG$)/,
          ),
          HUB_PORT: String(ports.hub),
          HUB_SECRET: derivedSecret(current, 'hub'),
          CHECKPOINT_KEY: derivedSecret(current, 'checkpoints'),
          HEALTH_PORT: String(port),
        },
        `http://127.0.0.1:${port}/readyz`,
      );
    }
  }
  for (let n = 1; n <= replicas(current, 'gateway-api'); n++) {
    const port = n === 1 ? ports.api : healthPort(2, n);
    service(
      named('gateway-api', n),
      'services/gateway-api/dist/main.js',
      {
        DATABASE_URL: roleUrl(current, 'gateway'),
        ...natsLogin(current, 'gateway-api'),
        ...modelEnv,
        ...namedValues(
          current,
          /^(COMMAND_TIMEOUT_MS$|SSE_PING_MS$|REQUESTS_PER_MINUTE$|STREAMS_PER_KEY$|BLOB_|FILE_MAX_)/,
        ),
        API_PORT: String(port),
      },
      `http://127.0.0.1:${port}/readyz`,
    );
  }
  const dashboard = 'services/dashboard/.next/standalone/services/dashboard/server.js';
  if (existsSync(join(ROOT, dashboard))) {
    service(
      'dashboard',
      dashboard,
      {
        ...namedValues(current, /^DASHBOARD_ALLOWED_HOSTS$/),
        HOSTNAME: '127.0.0.1',
        PORT: String(ports.dashboard),
        GATEWAY_API_URL: `http://127.0.0.1:${ports.api}`,
        NEXT_TELEMETRY_DISABLED: '1',
        DASHBOARD_COOKIE: createHash('sha256').update(current.stateDir).digest('hex').slice(0, 8),
      },
      `http://127.0.0.1:${ports.dashboard}/healthz`,
    );
  }
}

async function isReady(url: string): Promise<boolean> {
  try {
    return (await fetch(url, { signal: AbortSignal.timeout(2_000) })).ok;
  } catch {
    return false;
  }
}

async function stop(signal: string): Promise<void> {
  if (stopping) return;
  stopping = true;
  log(`stopping (${signal})`);
  const order = ['dashboard', 'gateway-api', 'session', 'sandbox', 'demo-gateway', 'nats', 'postgres'];
  for (const base of order)
    await Promise.all(
      keepers
        .filter(({ plan }) => plan.name === base || new RegExp(`^${base}-\\d+$`).test(plan.name))
        .map((keeper) => keeper.stop()),
    );
  folder.forget('supervisor');
  process.exit(0);
}

process.on('SIGTERM', () => void stop('SIGTERM'));
process.on('SIGINT', () => void stop('SIGINT'));
process.on('unhandledRejection', (error) => {
  log(`defect: ${error instanceof Error ? error.stack : String(error)}`);
});
function refuseSecond(): void {
  const first = folder.find('supervisor');
  if (first === null || first.pid === process.pid) return;
  console.error('a supervisor runs already');
  process.exit(1);
}
refuseSecond();
folder.record('supervisor', process.pid, serversOnly ? `${buildId} servers` : buildId);
// Of two that began at once the later record stays.
await sleep(100);
refuseSecond();
try {
  folder.recordStrays();
  await refuseTakenPorts();
  await Promise.all([startPostgres(), startNats()]);
  await prepareSchema();
  if (!serversOnly) {
    const { HARNESSES = '' } = settings.values;
    startServices(
      settings,
      await prepareHarnesses(HARNESSES, settings.values, settings.stateDir, (line) => status(line)),
    );
  }
  for (const [name, url] of Object.entries(health))
    await waitFor(name, async () => folder.find(name) !== null && (await isReady(url)), 60_000, name);
  status('ready', { ready: true });
} catch (error) {
  const message = error instanceof Error ? error.message : String(error);
  status('failed', { failed: message });
  await stop('failure');
}
