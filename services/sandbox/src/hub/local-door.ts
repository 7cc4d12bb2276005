import { createHash, timingSafeEqual } from 'node:crypto';
import { createServer, type IncomingMessage, type Server } from 'node:http';
import { type WebSocket, WebSocketServer } from 'ws';
import { listenIn } from '../link-socket.ts';
import { greet, type Hello, LINK_SERVER, LINK_SOCKETS, noPage } from './greeting.ts';
import { RunnerLink } from './runner-link.ts';

/** One link stands at a time; the rest is somebody knocking. */
const MAX_CONNECTIONS = 16;

/** What a sandbox's runner has to prove. */
export interface LinkProof {
  /** SHA-256 (hex) of the token that the newest incarnation was given. */
  readonly tokenHash: string;
  /** The key that this token was bound to; null until the first link. */
  publicKey: string | null;
}

export interface LocalDoorOptions {
  readonly linkDir: string;
  readonly proof: LinkProof;
  /** Done before the link stands: from then on its key is its only proof. A failure ends it; the runner dials again. */
  readonly record: (facts: { journalId: string; publicKey: string }) => Promise<void>;
  /** A link that was proven; it ends the one before. */
  readonly onLink: (link: RunnerLink) => void;
  /** Told once for each reason: whoever is inside may knock as often as it likes. */
  readonly onRefused: (reason: string) => void;
}

/**
 * Where one sandbox on this machine links: a socket that only this sandbox can reach. At most one link stands; a newer one
 * that proves itself replaces it.
 */
export class LocalDoor {
  readonly #options: LocalDoorOptions;
  readonly #refusals = new Set<string>();
  #server: Server | null = null;
  #sockets: WebSocketServer | null = null;
  #link: RunnerLink | null = null;

  constructor(options: LocalDoorOptions) {
    this.#options = options;
  }

  async listen(): Promise<void> {
    const server = createServer(LINK_SERVER, noPage);
    server.maxConnections = MAX_CONNECTIONS;
    this.#sockets = new WebSocketServer({ ...LINK_SOCKETS, server });
    this.#sockets.on('connection', (socket, request) => void this.#greet(socket, request));
    await listenIn(this.#options.linkDir, 'hub.sock', server);
    this.#server = server;
  }

  /** Ends the link, too. */
  async close(): Promise<void> {
    for (const client of this.#sockets?.clients ?? []) client.terminate();
    this.#server?.closeAllConnections();
    await new Promise<void>((resolve) => {
      if (this.#server === null) resolve();
      else this.#server.close(() => resolve());
    });
  }

  async #greet(socket: WebSocket, request: IncomingMessage): Promise<void> {
    const hello = await greet(socket, request);
    const refusal = typeof hello === 'string' ? hello : hello && this.#faultOf(hello);
    if (refusal !== null) this.#refuse(refusal);
    if (hello === null || typeof hello === 'string' || refusal !== null || !(await this.#recorded(hello))) {
      socket.terminate();
      return;
    }
    if (socket.readyState !== socket.OPEN) return;
    const before = this.#link;
    this.#link = new RunnerLink(socket, hello, {
      onLost: () => undefined,
      onFault: (reason) => this.#refuse(reason),
    });
    before?.close();
    this.#options.onLink(this.#link);
  }

  #refuse(reason: string): void {
    if (this.#refusals.has(reason)) return;
    this.#refusals.add(reason);
    this.#options.onRefused(reason);
  }

  /** Why a hello does not prove that this is the sandbox's runner; null when it does. */
  #faultOf({ publicKey, token, channel }: Hello): string | null {
    const { proof } = this.#options;
    if (channel !== 'calls') return 'it asked for a channel that is not here';
    if (proof.publicKey !== null) return proof.publicKey === publicKey ? null : 'another key is bound to this sandbox';
    const given = createHash('sha256')
      .update(token ?? '')
      .digest();
    return timingSafeEqual(given, Buffer.from(proof.tokenHash, 'hex')) ? null : 'its token is wrong';
  }

  async #recorded({ journalId, publicKey }: Hello): Promise<boolean> {
    this.#options.proof.publicKey = publicKey;
    return this.#options.record({ journalId, publicKey }).then(
      () => true,
      () => false,
    );
  }
}
