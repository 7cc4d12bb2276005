import { createHash, generateKeyPairSync, type KeyObject, sign } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import type { HubMessage, RunnerMessage } from '@holdfast/contracts';
import { type ClientOptions, WebSocket } from 'ws';

export type Hello = Extract<RunnerMessage, { type: 'hello' }>;
export type Keys = ReturnType<typeof newKeys>;

export const newKeys = () => generateKeyPairSync('ed25519');
export const spki = (key: KeyObject): string => key.export({ type: 'spki', format: 'der' }).toString('base64');

/** What a runner, or somebody who plays one, does at a door. */
export class Dialler {
  readonly keys = newKeys();
  readonly heard: HubMessage[] = [];
  readonly socket: WebSocket;
  readonly closed: Promise<void>;

  /** @param answer what it says to a nonce; null = it stays silent */
  constructor(url: string, answer: (nonce: string, own: Dialler) => string | null, options: ClientOptions = {}) {
    this.socket = new WebSocket(url, options);
    this.closed = new Promise((resolve) => this.socket.on('close', () => resolve()));
    this.socket.on('error', () => undefined);
    this.socket.on('message', (data, isBinary) => {
      if (isBinary) return;
      const message = JSON.parse(String(data as Buffer)) as HubMessage;
      this.heard.push(message);
      const reply = message.type === 'challenge' ? answer(message.nonce, this) : null;
      if (reply !== null) this.socket.send(reply);
    });
  }
  say(message: RunnerMessage): void {
    this.socket.send(JSON.stringify(message));
  }
  /** As a runner that has files, always the same. */
  answerAboutFiles(message: HubMessage): void {
    if (message.type === 'restore')
      this.say({ type: 'restored', id: message.id, fresh: false, restored: false, fault: null });
    if (message.type !== 'checkpoint') return;
    const bytes = Buffer.from('files');
    const digest = createHash('sha256').update(bytes).digest('hex');
    const place = { pack: digest, at: 0, bytes: bytes.length, digest };
    this.say({ type: 'pack', digest, bytes: bytes.length });
    this.socket.send(bytes);
    const figures = {
      ...{ entries: 0, bytes: 0, changed_files: 0, new_bytes: 0, took_ms: 0 },
      ...{ stopped_ms: 0, skipped: 0, unreadable: 0, torn: 0 },
    };
    this.say({
      type: 'checkpointed',
      id: message.id,
      taken: {
        roots: { workspace: place, home: place },
        packs: [{ digest, bytes: bytes.length }],
        figures,
        unreadable: [],
      },
      fault: null,
    });
  }
  async hears(type: HubMessage['type'], times = 1): Promise<void> {
    for (const deadline = Date.now() + 3_000; this.heard.filter((one) => one.type === type).length < times; ) {
      if (Date.now() > deadline) throw new Error(`heard no ${type}`);
      await sleep(5);
    }
  }
}

/** A hello that is right, but for the changes. */
export const hello =
  (changes: Partial<Hello> = {}, keys?: Keys) =>
  (nonce: string, own: Dialler): string => {
    const { publicKey, privateKey } = keys ?? own.keys;
    const signature = sign(null, Buffer.from(nonce), privateKey).toString('base64');
    return JSON.stringify({
      ...{ type: 'hello', publicKey: spki(publicKey), signature, token: 'the-token', journalId: 'j1' },
      ...{ pod: null, channel: 'calls', keepsFiles: true },
      ...changes,
    });
  };
