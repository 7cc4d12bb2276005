import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { closeSync, openSync, readFileSync, unlinkSync } from 'node:fs';
import type { AddressInfo, Socket } from 'node:net';
import { join } from 'node:path';
import { HarnessHost } from './acp/harness-host.ts';
import { carryToHub, carryToSocket, startEgressRelay } from './egress-relay.ts';
import { HubPlace, type HubPlaceOptions, pinnedAgent } from './hub-place.ts';
import { Journal } from './journal.ts';
import { Outputs } from './outputs.ts';
import { stopOthers } from './processes.ts';
import { Runner } from './runner.ts';
import { Tools } from './tools.ts';
import { linkSession, makeSession, Uploads } from './uploads.ts';

/** The first program of a sandbox. Settings come from its environment; on one machine it is handed two open files. */
const TOKEN_FILE = 3;
const JOURNAL_FILE = 4;
/** Without the hub of this machine for so long nobody will ask for results any more. */
const ALONE_MS = 120_000;

/** What differs between a sandbox on the platform's machine and one in a pod. */
interface Surroundings {
  readonly journal: Journal;
  readonly hub: Omit<HubPlaceOptions, 'journalId'>;
  readonly carry: (hub: HubPlace, channel: 'egress' | 'door') => (client: Socket) => void;
  readonly aloneMs: number;
}

const setting = (name: string): string | undefined => process.env[`HOLDFAST_${name}`];
const hubUrl = setting('HUB_URL');
const workspace = setting('WORKSPACE') ?? '/workspace';
const home = process.env['HOME'] ?? '/home/agent';
const session = join(home, '.session');
const proxyPort = Number(setting('PROXY_PORT') ?? 3128);

process.umask(Number.parseInt(setting('UMASK') ?? '022', 8));
makeSession(session);
const proxy = `http://127.0.0.1:${proxyPort}`;
const network: Record<string, string> =
  proxyPort === 0
    ? {}
    : {
        HTTP_PROXY: proxy,
        HTTPS_PROXY: proxy,
        http_proxy: proxy,
        https_proxy: proxy,
        NO_PROXY: 'localhost,127.0.0.1',
        no_proxy: 'localhost,127.0.0.1',
        // Node's own fetch heeds the others only then.
        NODE_USE_ENV_PROXY: '1',
      };

const alone = setting('ALONE') === '1';
const { journal, hub: place, carry, aloneMs } = hubUrl === undefined ? onThisMachine() : inPod(hubUrl);
const hub = new HubPlace({ ...place, journalId: journal.id });
const places = { workspace, home, scratch: join(home, '.holdfast'), alone };
/** Listens from its first use on: the native harness needs no door. */
let door: Promise<string> | null = null;
const openDoor = async (): Promise<string> => {
  const server = startEgressRelay(0, carry(hub, 'door'));
  await once(server, 'listening');
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
};
const runner = new Runner({
  hub,
  aloneMs,
  journal,
  tools: new Tools(places),
  harnesses: new HarnessHost({
    ...places,
    folder: setting('HARNESS_DIR') ?? '/opt/holdfast/harnesses',
    door: () => (door ??= openDoor()),
  }),
  uploads: new Uploads(session),
  outputs: new Outputs(join(session, 'outputs')),
  checkpoints: {
    roots: { workspace, home },
    furnish: () => makeSession(session),
    stopOthers: alone ? stopOthers : () => () => undefined,
  },
  defaults: { LANG: 'C.UTF-8', TERM: 'dumb' },
  fixed: { PATH: process.env['PATH'] ?? '/usr/local/bin:/usr/bin:/bin', HOME: home, ...network },
  leave: (code) => process.exit(code),
});
for (const signal of ['SIGTERM', 'SIGINT'] as const) process.on(signal, () => void runner.stop(0));
if (proxyPort > 0) startEgressRelay(proxyPort, carry(hub, 'egress'));
runner.start();

/** Hub and proxy are sockets in a folder. */
function onThisMachine(): Surroundings {
  const token = readToken(TOKEN_FILE);
  closeSync(TOKEN_FILE);
  // Reached by name from here: the folder's path may be longer than a socket's may be.
  process.chdir(setting('LINK_DIR') ?? '/run/holdfast/link');
  return {
    journal: new Journal(JOURNAL_FILE),
    hub: { url: 'ws+unix:hub.sock:', pod: null, token: () => token },
    carry: (_hub, channel) => carryToSocket(`${channel}.sock`),
    aloneMs: ALONE_MS,
  };
}

/** The hub is dialled, and known by its certificate; the journal ends with the container. */
function inPod(url: string): Surroundings {
  const ca = setting('HUB_CA');
  if (ca === undefined) throw new Error('HOLDFAST_HUB_CA is not set: the hub could not be told from any other server.');
  const path = join(setting('SCRATCH') ?? '/tmp', randomUUID());
  const file = openSync(path, 'ax+', 0o600);
  // No name leads there any more: nothing but the runner can reach it.
  unlinkSync(path);
  process.chdir('/');
  linkSession(session);
  return {
    journal: new Journal(file, false),
    hub: {
      url,
      agent: pinnedAgent(ca),
      pod: setting('POD_UID') ?? null,
      token: () => readToken(setting('TOKEN_FILE') ?? '/var/run/secrets/holdfast/token'),
    },
    carry: carryToHub,
    aloneMs: Number.POSITIVE_INFINITY,
  };
}

/** A token from a file or a descriptor; null when there is none. */
function readToken(file: number | string): string | null {
  try {
    return readFileSync(file, 'utf8').trim() || null;
  } catch {
    return null;
  }
}
