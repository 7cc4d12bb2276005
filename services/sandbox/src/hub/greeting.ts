import { createPublicKey, randomBytes, verify } from 'node:crypto';
import type { IncomingMessage, RequestListener } from 'node:http';
import {
  type HubMessage,
  LINK_MESSAGE_BYTES,
  RUNNER_LINK_PATH,
  type RunnerMessage,
  runnerMessage,
} from '@holdfast/contracts';
import type { ServerOptions, WebSocket } from 'ws';

/** A hello comes within this time, and so do the headers before it. */
export const GREET_MS = 5_000;
/** What somebody may send before they have said hello; theirs is the only message that is read. */
const MAX_HELLO_BYTES = 64 * 1024;

export type Hello = Extract<RunnerMessage, { type: 'hello' }>;

/** How both doors listen for WebSockets. */
export const LINK_SOCKETS = {
  path: RUNNER_LINK_PATH,
  maxPayload: LINK_MESSAGE_BYTES,
  perMessageDeflate: false,
} as const satisfies ServerOptions;
/** How both doors listen for HTTP below them, and what they answer to plain requests. */
export const LINK_SERVER = { headersTimeout: GREET_MS, connectionsCheckingInterval: GREET_MS } as const;
export const noPage: RequestListener = (_request, response) => response.writeHead(404, { connection: 'close' }).end();

/**
 * Sends a nonce and reads the hello that comes back, whose signature shows that its sender has the key that it names.
 * Returns a refusal's reason for any other, and null when nobody said anything; the socket is the caller's to end.
 */
export function greet(socket: WebSocket, request: IncomingMessage): Promise<Hello | string | null> {
  const nonce = randomBytes(24).toString('base64');
  return new Promise((resolve) => {
    let bytes = 0;
    const count = (piece: Buffer): void => {
      bytes += piece.length;
      if (bytes > MAX_HELLO_BYTES) settle('it said more than hello');
    };
    const settle = (answer: Hello | string | null): void => {
      clearTimeout(late);
      request.socket.off('data', count);
      resolve(answer);
    };
    const late = setTimeout(() => settle(null), GREET_MS);
    request.socket.on('data', count);
    socket.on('error', () => settle(null));
    socket.once('close', () => settle(null));
    socket.once('message', (data, isBinary) => {
      const message = isBinary ? null : readMessage(data);
      settle(message?.type === 'hello' ? (faultOf(message, nonce) ?? message) : 'it did not say hello');
    });
    socket.send(JSON.stringify({ type: 'challenge', nonce } satisfies HubMessage));
  });
}

function faultOf({ publicKey, signature }: Hello, nonce: string): string | null {
  try {
    const key = createPublicKey({ key: Buffer.from(publicKey, 'base64'), format: 'der', type: 'spki' });
    return key.asymmetricKeyType === 'ed25519' &&
      verify(null, Buffer.from(nonce), key, Buffer.from(signature, 'base64'))
      ? null
      : 'its signature is wrong';
  } catch {
    return 'its key cannot be read';
  }
}

/** What a runner said; null when it cannot be read. */
export function readMessage(data: unknown): RunnerMessage | null {
  try {
    return runnerMessage.parse(JSON.parse(String(data as Buffer)));
  } catch {
    return null;
  }
}
