import type { IncomingMessage } from 'node:http';
import { createServer, type Server } from 'node:https';
import type { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import type { HubMessage } from '@holdfast/contracts';
import { type WebSocket, WebSocketServer } from 'ws';
import { EgressStream } from './egress-stream.ts';
import { GREET_MS, greet, type Hello, LINK_SERVER, LINK_SOCKETS, noPage } from './greeting.ts';
import { RunnerLink } from './runner-link.ts';

/** The API server and the store answer within this time, or the runner dials again. */
const PROVE_MS = 10_000;
/** Connections that have proven nothing yet. Pods of one node may share an address. */
const MAX_UNPROVEN = 512;
const MAX_UNPROVEN_PER_ADDRESS = 64;
const MAX_EGRESS_PER_POD = 128;
/** An egress connection on which nothing moves for so long is ended; it is not pinged. */
const EGRESS_IDLE_MS = 120_000;
/** A model may think for long without a word. */
const DOOR_IDLE_MS = 30 * 60_000;
/** So often each refusal is told within a minute, and so many different ones. */
const MAX_TOLD = 3;
const MAX_REFUSALS = 1_000;
const TOLD_MS = 60_000;

export interface PodIdentity {
  readonly uid: string;
  readonly name: string;
  readonly namespace: string;
  readonly node: string | null;
}

export interface LinkRefusal {
  readonly reason: string;
  /** UID of the pod, where that was proven; never what somebody merely says. */
  readonly pod: string | null;
  readonly remoteAddress: string | null;
}

export interface ClusterDoorOptions {
  readonly host: string;
  /** 0 = any. */
  readonly port: number;
  /** PEM. */
  readonly tls: { readonly cert: string; readonly key: string };
  /**
   * Whose token it is; a refusal when it is not a live pod's token for the hub's audience. Throws when the API server
   * cannot be asked: the runner dials again.
   */
  readonly review: (token: string) => Promise<PodIdentity | { readonly refused: string }>;
  /** Throws when it cannot be asked: the runner dials again. */
  readonly keys: {
    /** The identity and key bound to a pod's UID; null when none is. */
    find(podUid: string): Promise<(PodIdentity & { readonly publicKey: string }) | null>;
    /** Binds the key unless another one is bound and alive; false = another one is. */
    bind(pod: PodIdentity, publicKey: string): Promise<boolean>;
  };
  /** A link whose key is bound. It ends the pod's link before it, whose `onLost` comes after this. */
  readonly onLink: (pod: PodIdentity, link: RunnerLink) => void;
  /** One connection out of the sandbox, to its proxy or its model door, after its hello was proven with the bound key. */
  readonly onEgress: (pod: PodIdentity, stream: Duplex, channel: 'egress' | 'door') => void;
  /** A few times a minute for each reason and pod. */
  readonly onRefused: (refusal: LinkRefusal) => void;
}

type Proof = { readonly pod: PodIdentity } | { readonly refused: string; readonly podUid: string | null };

/**
 * Where all runners of a cluster link, by TLS 1.3 on one port that the replicas on a machine share. A runner's first link
 * binds its key to its pod by the pod's projected token; from then on the key is the proof, at every replica (X5).
 */
export class ClusterDoor {
  readonly #options: ClusterDoorOptions;
  readonly #server: Server;
  readonly #sockets: WebSocketServer;
  /** By address and port, the oldest first. */
  readonly #unproven = new Map<string, Map<number, Socket>>();
  readonly #links = new Map<string, RunnerLink>();
  /** Egress connections of each pod. */
  readonly #egress = new Map<string, number>();
  readonly #told = new Map<string, number>();
  #toldSinceMs = 0;

  constructor(options: ClusterDoorOptions) {
    this.#options = options;
    const tls = { ...options.tls, minVersion: 'TLSv1.3', handshakeTimeout: GREET_MS } as const;
    this.#server = createServer({ ...LINK_SERVER, ...tls }, noPage);
    this.#server.on('connection', (socket: Socket) => this.#admit(socket));
    this.#sockets = new WebSocketServer({ ...LINK_SOCKETS, server: this.#server });
    this.#sockets.on('connection', (socket, request) => void this.#greet(socket, request));
  }

  /** The port that it listens on. */
  get port(): number {
    const address = this.#server.address();
    return typeof address === 'object' && address !== null ? address.port : this.#options.port;
  }

  async listen(): Promise<void> {
    const { host, port } = this.#options;
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen({ host, port, reusePort: true }, () => {
        this.#server.off('error', reject);
        resolve();
      });
    });
  }

  /** Ends every link, too. */
  async close(): Promise<void> {
    for (const client of this.#sockets.clients) client.terminate();
    for (const sockets of this.#unproven.values()) for (const socket of sockets.values()) socket.destroy();
    this.#server.closeAllConnections();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }

  /** Makes room for a new connection: our own runners are done within milliseconds, so whoever waits longest goes. */
  #admit(socket: Socket): void {
    const { remoteAddress = '', remotePort = 0 } = socket;
    const same = this.#unproven.get(remoteAddress) ?? new Map<number, Socket>();
    this.#unproven.set(remoteAddress, same.set(remotePort, socket));
    socket.once('close', () => this.#release(remoteAddress, remotePort));
    if (same.size > MAX_UNPROVEN_PER_ADDRESS) this.#evict(remoteAddress, same);
    const all = [...this.#unproven];
    if (all.reduce((sum, [, { size }]) => sum + size, 0) > MAX_UNPROVEN)
      this.#evict(...all.reduce((one, other) => (other[1].size > one[1].size ? other : one)));
  }

  #evict(address: string, sockets: ReadonlyMap<number, Socket>): void {
    for (const [port, socket] of sockets) {
      this.#release(address, port);
      socket.destroy();
      return;
    }
  }

  #release(address: string, port: number): void {
    const sockets = this.#unproven.get(address);
    sockets?.delete(port);
    if (sockets?.size === 0) this.#unproven.delete(address);
  }

  async #greet(socket: WebSocket, request: IncomingMessage): Promise<void> {
    const { remoteAddress = '', remotePort = 0 } = request.socket;
    const late = setTimeout(() => socket.terminate(), GREET_MS + PROVE_MS);
    const hello = await greet(socket, request);
    // Where API server or store cannot be asked, whoever failed to has said so: the runner dials again.
    const proof = await this.#prove(hello).catch(() => null);
    clearTimeout(late);
    if (proof !== null && 'refused' in proof) this.#refuse(proof.refused, proof.podUid, remoteAddress);
    if (hello === null || typeof hello === 'string' || proof === null || 'refused' in proof) {
      socket.terminate();
      return;
    }
    if (socket.readyState !== socket.OPEN) return;
    this.#release(remoteAddress, remotePort);
    if (hello.channel !== 'calls') this.#carry(proof.pod, socket, request.socket, hello.channel);
    else this.#link(proof.pod, socket, hello, remoteAddress);
  }

  /** Whose a hello is; null when there is none. */
  async #prove(hello: Hello | string | null): Promise<Proof | null> {
    if (hello === null) return null;
    if (typeof hello === 'string') return { refused: hello, podUid: null };
    const { review, keys } = this.#options;
    const bound = hello.pod === null ? null : await keys.find(hello.pod);
    if (bound?.publicKey === hello.publicKey) {
      const { publicKey: _, ...pod } = bound;
      return { pod };
    }
    // A token binds a key, and then it is used up: what it proves is known, what leaves the sandbox goes by the key.
    if (hello.token === null || hello.channel !== 'calls')
      return {
        refused: bound === null ? 'no key is bound to its pod' : 'another key is bound to this pod',
        podUid: null,
      };
    const pod = await review(hello.token);
    if ('refused' in pod) return { refused: pod.refused, podUid: null };
    if (hello.pod !== null && hello.pod !== pod.uid) return { refused: 'its token is another pod’s', podUid: pod.uid };
    if (await keys.bind(pod, hello.publicKey)) return { pod };
    return { refused: 'another key is bound to this pod', podUid: pod.uid };
  }

  #link(pod: PodIdentity, socket: WebSocket, hello: Hello, remoteAddress: string): void {
    const { uid } = pod;
    const link = new RunnerLink(
      socket,
      { ...hello, pod: uid },
      {
        onLost: () => undefined,
        onFault: (reason) => this.#refuse(reason, uid, remoteAddress),
      },
    );
    socket.once('close', () => {
      if (this.#links.get(uid) === link) this.#links.delete(uid);
    });
    const before = this.#links.get(uid);
    this.#links.set(uid, link);
    before?.close();
    say(socket, { type: 'bound' });
    this.#options.onLink(pod, link);
  }

  #carry(pod: PodIdentity, socket: WebSocket, connection: Socket, channel: 'egress' | 'door'): void {
    const { uid } = pod;
    const open = this.#egress.get(uid) ?? 0;
    if (open >= MAX_EGRESS_PER_POD) {
      socket.terminate();
      this.#refuse(`it has ${MAX_EGRESS_PER_POD} connections out already`, uid, connection.remoteAddress);
      return;
    }
    this.#egress.set(uid, open + 1);
    socket.once('close', () => {
      const left = (this.#egress.get(uid) ?? 0) - 1;
      if (left > 0) this.#egress.set(uid, left);
      else this.#egress.delete(uid);
    });
    connection.setTimeout(channel === 'door' ? DOOR_IDLE_MS : EGRESS_IDLE_MS, () => socket.terminate());
    say(socket, { type: 'welcome', env: {} });
    this.#options.onEgress(pod, new EgressStream(socket), channel);
  }

  #refuse(reason: string, pod: string | null, remoteAddress: string | undefined): void {
    if (Date.now() - this.#toldSinceMs > TOLD_MS) {
      this.#told.clear();
      this.#toldSinceMs = Date.now();
    }
    const key = JSON.stringify([reason, pod ?? remoteAddress]);
    const told = this.#told.get(key) ?? 0;
    if (told >= MAX_TOLD || this.#told.size >= MAX_REFUSALS) return;
    this.#told.set(key, told + 1);
    this.#options.onRefused({ reason, pod, remoteAddress: remoteAddress ?? null });
  }
}

function say(socket: WebSocket, message: HubMessage): void {
  socket.send(JSON.stringify(message));
}
