import { type ChildProcess, spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { hubCertificate } from '../hub/certificate.ts';
import { ClusterDoor, type LinkRefusal, type PodIdentity } from '../hub/cluster-door.ts';
import type { RunnerLink } from '../hub/runner-link.ts';
import { Dialler } from './dialler.ts';

const RUNNER = fileURLToPath(new URL('../../../../harnesses/runner/src/main.ts', import.meta.url));

export const podOf = (uid: string): PodIdentity => ({ uid, name: `pod-${uid}`, namespace: 'ns', node: 'node-1' });

export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

export async function until(what: string, found: () => boolean, timeoutMs = 10_000): Promise<void> {
  for (const deadline = Date.now() + timeoutMs; !found(); await sleep(5))
    if (Date.now() > deadline) throw new Error(`in vain: ${what}`);
}

/** A real runner as a process of this machine, set up as in a pod. */
export class RunnerProcess {
  readonly folder = mkdtempSync(join(tmpdir(), 'holdfast-runner-'));
  readonly workspace = join(this.folder, 'workspace');
  readonly tokenFile = join(this.folder, 'token');
  log = '';
  readonly child: ChildProcess;
  readonly exited: Promise<number | null>;

  constructor(env: Readonly<Record<string, string>>, token: string) {
    mkdirSync(this.workspace);
    this.token = token;
    this.child = spawn(process.execPath, [RUNNER], {
      cwd: '/',
      env: {
        PATH: '/usr/local/bin:/usr/bin:/bin',
        HOME: this.folder,
        HOLDFAST_WORKSPACE: this.workspace,
        HOLDFAST_SCRATCH: this.folder,
        HOLDFAST_TOKEN_FILE: this.tokenFile,
        HOLDFAST_PROXY_PORT: '0',
        ...env,
      },
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    this.child.stderr?.on('data', (text) => (this.log += String(text)));
    this.exited = new Promise((resolve) => this.child.once('close', resolve));
  }

  set token(token: string) {
    writeFileSync(this.tokenFile, `${token}\n`);
  }

  async end(): Promise<void> {
    this.child.kill('SIGKILL');
    await this.exited;
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** Doors of replicas that share the keys and one port, an API server that knows some tokens, and runners that dial them. */
export class Cluster {
  readonly doors: ClusterDoor[] = [];
  readonly links: { readonly door: number; readonly pod: PodIdentity; readonly link: RunnerLink }[] = [];
  readonly refusals: LinkRefusal[] = [];
  readonly tokens = new Map<string, PodIdentity | { readonly refused: string }>();
  readonly keys = new Map<string, string>();
  reviewed = 0;
  apiServerIsAway = false;
  onLink = (_link: RunnerLink): void => undefined;
  onEgress = (_pod: PodIdentity, stream: Duplex, _channel: 'egress' | 'door'): unknown => stream.destroy();
  cert = '';
  port = 0;
  readonly #runners: RunnerProcess[] = [];

  /** @param tls the hub's certificate and key; runners are started with the newest door's */
  async open(tls?: { readonly cert: string; readonly key: string }): Promise<ClusterDoor> {
    const { cert, key } = tls ?? (await hubCertificate('secret'));
    this.cert = cert;
    const number = this.doors.length;
    const door = new ClusterDoor({
      host: '127.0.0.1',
      port: this.port,
      tls: { cert, key },
      review: async (token) => {
        this.reviewed++;
        await sleep(5);
        if (this.apiServerIsAway) throw new Error('the API server is away');
        return this.tokens.get(token) ?? { refused: 'the token was not issued here' };
      },
      keys: {
        find: (uid) => {
          const publicKey = this.keys.get(uid);
          return Promise.resolve(publicKey === undefined ? null : { ...podOf(uid), publicKey });
        },
        bind: (pod, publicKey) => {
          const bound = this.keys.get(pod.uid) ?? publicKey;
          this.keys.set(pod.uid, bound);
          return Promise.resolve(bound === publicKey);
        },
      },
      onLink: (pod, link) => {
        this.links.push({ door: number, pod, link });
        this.onLink(link);
      },
      onEgress: (pod, stream, channel) => this.onEgress(pod, stream, channel),
      onRefused: (refusal) => this.refusals.push(refusal),
    });
    this.doors.push(door);
    await door.listen();
    this.port = door.port;
    return door;
  }

  /** Starts a runner in the pod `uid`, with a token that the API server knows. */
  start(uid: string, env: Readonly<Record<string, string>> = {}, token = `token-of-${uid}`): RunnerProcess {
    if (!this.tokens.has(token)) this.tokens.set(token, podOf(uid));
    const runner = new RunnerProcess(
      {
        HOLDFAST_HUB_URL: `wss://127.0.0.1:${this.port}`,
        HOLDFAST_HUB_CA: this.cert,
        HOLDFAST_POD_UID: uid,
        ...env,
      },
      token,
    );
    this.#runners.push(runner);
    return runner;
  }

  dial(answer: ConstructorParameters<typeof Dialler>[1]): Dialler {
    return new Dialler(`wss://127.0.0.1:${this.port}/runner-link`, answer, {
      ca: this.cert,
      checkServerIdentity: () => false,
    });
  }

  /** The link of a pod that stands, once it does. */
  async linked(uid: string): Promise<RunnerLink> {
    const find = () => this.links.findLast(({ pod, link }) => pod.uid === uid && link.open)?.link;
    await until(`a link of ${uid}`, () => find() !== undefined);
    return find() as RunnerLink;
  }

  async close(): Promise<void> {
    await Promise.all(this.#runners.map((runner) => runner.end()));
    await Promise.all(this.doors.map((door) => door.close()));
  }
}
