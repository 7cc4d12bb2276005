import { generateKeyPairSync, sign, X509Certificate } from 'node:crypto';
import { Agent } from 'node:https';
import type { RunnerMessage } from '@holdfast/contracts';
import { WebSocket } from 'ws';

const HANDSHAKE_MS = 5_000;
const MAX_MESSAGE_BYTES = 16 * 1024 * 1024;

export interface HubPlaceOptions {
  readonly url: string;
  /** Knows the hub by its certificate; none on this machine. */
  readonly agent?: Agent;
  /** UID of the pod that this runs in; null on this machine. */
  readonly pod: string | null;
  /** Read afresh each time it is sent; null when there is none. */
  readonly token: () => string | null;
  readonly journalId: string;
}

/**
 * Knows the hub by its certificate (PEM, the first in it) and by nothing else: not by a name, and not by who signed it,
 * who signs others as well. @throws when it holds no certificate
 */
export function pinnedAgent(pem: string): Agent {
  const { raw } = new X509Certificate(pem);
  return new Agent({
    ca: pem,
    allowPartialTrustChain: true,
    checkServerIdentity: (_host, shown) => (shown.raw.equals(raw) ? undefined : new Error('it is not the hub')),
    minVersion: 'TLSv1.3',
  });
}

/** Where the hub is, and who the runner is to it: the key that it made at its start, and a token until that is bound. */
export class HubPlace {
  /** Whether the hub knows the key: then the token is not sent. */
  bound = false;
  readonly #options: HubPlaceOptions;
  readonly #keys = generateKeyPairSync('ed25519');

  constructor(options: HubPlaceOptions) {
    this.#options = options;
  }

  dial(): WebSocket {
    const { url, agent } = this.#options;
    return new WebSocket(`${url}/runner-link`, {
      agent,
      handshakeTimeout: HANDSHAKE_MS,
      maxPayload: MAX_MESSAGE_BYTES,
      perMessageDeflate: false,
    });
  }

  hello(nonce: string, channel: 'calls' | 'egress' | 'door'): RunnerMessage {
    const { publicKey, privateKey } = this.#keys;
    return {
      type: 'hello',
      publicKey: publicKey.export({ type: 'spki', format: 'der' }).toString('base64'),
      signature: sign(null, Buffer.from(nonce), privateKey).toString('base64'),
      token: this.bound || channel !== 'calls' ? null : this.#options.token(),
      journalId: this.#options.journalId,
      pod: this.#options.pod,
      channel,
      keepsFiles: true,
    };
  }
}
