import { lookup } from 'node:dns/promises';
import {
  createServer,
  request as httpRequest,
  type IncomingMessage,
  type Server,
  type ServerResponse,
} from 'node:http';
import { connect, isIP, type Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { hostAllowed, type ResolvedNetworking } from '@holdfast/contracts';
import { isPublicAddress } from '@holdfast/platform';
import { listenIn } from '../link-socket.ts';
import { PACKAGE_HOSTS } from './allowed-hosts.ts';

const IDLE_MS = 120_000;
const MAX_CONNECTIONS = 128;
const CONNECT_MS = 10_000;
const HEADERS_MS = 20_000;
/** Decisions that are told of one sandbox; whoever asks for more hosts than that is refused or served in silence. */
const MAX_TOLD = 1_000;

export interface Decision {
  readonly host: string;
  readonly port: number;
  readonly allowed: boolean;
  readonly reason: string;
}

interface Target {
  readonly host: string;
  readonly port: number;
}

/** How names become addresses and addresses connections; the machine's own, but for specs. */
export interface Net {
  readonly resolve: (host: string) => Promise<readonly string[]>;
  readonly connect: (address: string, port: number) => Socket;
}

const machineNet: Net = {
  resolve: async (host) => (await lookup(host, { all: true })).map(({ address }) => address),
  connect: (address, port) => connect({ host: address, port, allowHalfOpen: true }),
};

/**
 * The only network of one sandbox: an HTTP proxy, on a socket that only this sandbox can reach or for connections that
 * were carried here, whoever proved whose they are. It resolves a name once,
 * checks every address it got, and dials those that it checked and no other (X2). `limited` = the environment's hosts,
 * `unrestricted` = any public one. Each host's decision is told once.
 */
export class EgressProxy {
  readonly #networking: ResolvedNetworking;
  readonly #onDecision: (decision: Decision) => void;
  readonly #net: Net;
  readonly #told = new Set<string>();
  readonly #open = new Set<Duplex>();
  readonly #server: Server;

  constructor(networking: ResolvedNetworking, onDecision: (decision: Decision) => void, net: Net = machineNet) {
    this.#networking = networking;
    this.#onDecision = onDecision;
    this.#net = net;
    this.#server = createServer(
      {
        maxHeaderSize: 32 * 1024,
        requestTimeout: 0,
        headersTimeout: HEADERS_MS,
        connectionsCheckingInterval: HEADERS_MS,
      },
      (request, response) => void this.#forward(request, response),
    );
    this.#server.maxConnections = MAX_CONNECTIONS;
    this.#server.on('connect', (request, socket, head: Buffer) => void this.#tunnel(request, socket, head));
    this.#server.on('clientError', (_error, socket) => socket.destroy());
  }

  listen(linkDir: string): Promise<void> {
    return listenIn(linkDir, 'egress.sock', this.#server);
  }

  /** Serves a connection that was carried here. How many there are, and how long one may be idle, is its carrier's to say. */
  accept(connection: Duplex): void {
    this.#track(connection);
    this.#server.emit('connection', connection);
  }

  async close(): Promise<void> {
    for (const socket of this.#open) socket.destroy();
    this.#server.closeAllConnections();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }

  async #tunnel(request: IncomingMessage, socket: Duplex, head: Buffer): Promise<void> {
    this.#track(socket);
    const target = parseAuthority(request.url ?? '');
    const upstream = target === null ? 'the target is malformed' : await this.#dial(target);
    if (typeof upstream === 'string') {
      socket.end(`HTTP/1.1 403 Forbidden\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n${upstream}\n`);
      // Read to its end it can end; nobody else reads it.
      socket.resume();
      return;
    }
    if (socket.destroyed) {
      upstream.destroy();
      return;
    }
    upstream.setTimeout(IDLE_MS, () => upstream.destroy());
    // What had been sent already still arrives.
    upstream.on('close', () => destroySoon(socket));
    socket.on('close', () => destroySoon(upstream));
    socket.write('HTTP/1.1 200 Connection established\r\n\r\n');
    if (head.length > 0) upstream.write(head);
    socket.pipe(upstream).pipe(socket);
  }

  /** Plain http:// in absolute form; what comes back is the client's to follow, and is checked again. */
  async #forward(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = URL.parse(request.url ?? '');
    const target = url?.protocol === 'http:' ? parseAuthority(`${url.hostname}:${url.port || 80}`) : null;
    if (url === null || target === null) {
      response
        .writeHead(400, { 'content-type': 'text/plain' })
        .end('this is a proxy: send absolute http:// URLs or CONNECT\n');
      return;
    }
    const upstream = await this.#dial(target);
    if (typeof upstream === 'string') {
      response.writeHead(403, { 'content-type': 'text/plain' }).end(`${upstream}\n`);
      return;
    }
    if (response.destroyed) {
      upstream.destroy();
      return;
    }
    upstream.setTimeout(IDLE_MS, () => upstream.destroy());
    const headers = { ...request.headers, host: url.host, connection: 'close' };
    for (const name of ['proxy-connection', 'proxy-authorization', 'keep-alive', 'te', 'upgrade'])
      Reflect.deleteProperty(headers, name);
    const forwarded = httpRequest(
      { method: request.method, path: url.pathname + url.search, headers, createConnection: () => upstream },
      (answer) => {
        response.writeHead(answer.statusCode ?? 502, answer.headers);
        answer.on('error', () => response.destroy());
        answer.pipe(response);
      },
    );
    forwarded.on('error', () => (response.headersSent ? response.destroy() : response.writeHead(502).end()));
    response.on('close', () => upstream.destroy());
    request.pipe(forwarded);
  }

  /** A connection to an address that was checked, or the reason why there is none. */
  async #dial(target: Target): Promise<Socket | string> {
    const decided = await this.#decide(target);
    const { allowed, reason } = decided;
    const key = `${target.host}:${target.port}:${allowed}`;
    if (!this.#told.has(key) && this.#told.size < MAX_TOLD) {
      this.#told.add(key);
      this.#onDecision({ ...target, allowed, reason });
    }
    for (const address of decided.addresses) {
      const socket = await this.#connect(address, target.port);
      if (socket !== null) return socket;
    }
    return allowed && decided.addresses.length > 0 ? `${target.host} could not be reached` : reason;
  }

  #connect(address: string, port: number): Promise<Socket | null> {
    return new Promise((resolve) => {
      const socket = this.#net.connect(address, port);
      this.#track(socket);
      const timer = setTimeout(() => socket.destroy(), CONNECT_MS);
      socket.once('close', () => {
        clearTimeout(timer);
        resolve(null);
      });
      socket.once('connect', () => {
        clearTimeout(timer);
        resolve(socket);
      });
    });
  }

  #track(socket: Duplex): void {
    this.#open.add(socket);
    socket.on('error', () => socket.destroy());
    socket.on('close', () => this.#open.delete(socket));
  }

  async #decide({ host, port }: Target): Promise<{ allowed: boolean; reason: string; addresses: readonly string[] }> {
    const refuse = (reason: string) => ({ allowed: false, reason, addresses: [] });
    if (port < 1 || port > 65_535) return refuse('the port is not valid');
    const networking = this.#networking;
    if (networking.type === 'limited') {
      const allowed = [...networking.allowed_hosts, ...(networking.allow_package_managers ? PACKAGE_HOSTS : [])];
      if (!hostAllowed(host, allowed)) return refuse(`the environment does not allow ${host}`);
    }
    let addresses: readonly string[];
    try {
      addresses = isIP(host) === 0 ? await this.#net.resolve(host) : [host];
    } catch {
      return { allowed: true, reason: `${host} cannot be resolved`, addresses: [] };
    }
    // One private address among public ones is how rebinding looks: all must be public.
    if (addresses.length === 0 || addresses.some((address) => !isPublicAddress(address)))
      return refuse(`${host} is not on the public internet`);
    return { allowed: true, reason: 'allowed', addresses };
  }
}

/** Ends it once what was written has left, as a socket of the machine can by itself. */
function destroySoon(socket: Duplex): void {
  if (socket.writable) socket.end();
  if (socket.writableFinished) socket.destroy();
  else socket.once('finish', () => socket.destroy());
}

function parseAuthority(text: string): Target | null {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]{1,253})):(\d{1,5})$/.exec(text);
  const host = match?.[1] ?? match?.[2];
  return host === undefined ? null : { host, port: Number(match?.[3]) };
}
