import { setTimeout as sleep } from 'node:timers/promises';
import type { HubMessage, RunnerMessage } from '@holdfast/contracts';
import type { WebSocket } from 'ws';
import type { Pack, PackStore } from './packer.ts';

const PIECE_BYTES = 512 * 1024;
/** As `PACKS_UNDER_WAY` and `PACK_LIMIT_BYTES` of the contracts, of which a runner shares only types. */
const UNDER_WAY = 2;
const LIMIT_BYTES = 16 * 1024 * 1024;

interface Wanted {
  parts: Buffer[];
  missing: number;
  readonly resolve: (bytes: Buffer) => void;
  readonly reject: (error: Error) => void;
}

/** Packs on their way over one link: no more at a time than the hub keeps up with. What is under way when it ends fails. */
export class LinkPacks implements PackStore {
  readonly #socket: WebSocket;
  readonly #send: (message: RunnerMessage) => void;
  readonly #underWay = new Set<string>();
  readonly #wanted = new Map<string, Wanted>();
  /** The pack whose bytes come now. */
  #coming: { readonly digest: string; readonly wanted: Wanted } | null = null;
  #wake: () => void = () => undefined;

  constructor(socket: WebSocket) {
    this.#socket = socket;
    this.#send = (message) => socket.send(JSON.stringify(message));
    socket.once('close', () => {
      this.#wake();
      for (const { reject } of this.#wanted.values()) reject(ended());
      this.#wanted.clear();
    });
  }

  async put({ digest, bytes }: Pack): Promise<void> {
    if (bytes.length > LIMIT_BYTES) throw new Error('A pack is too large.');
    while (this.#underWay.size >= UNDER_WAY) {
      this.#mustStand();
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
    this.#mustStand();
    this.#underWay.add(digest);
    this.#send({ type: 'pack', digest, bytes: bytes.length });
    for (let at = 0; at < bytes.length; at += PIECE_BYTES) {
      // Answers of calls go between the pieces, so few may wait in line.
      while (this.#socket.bufferedAmount > PIECE_BYTES) {
        await sleep(1);
        this.#mustStand();
      }
      this.#socket.send(bytes.subarray(at, at + PIECE_BYTES));
    }
  }

  get(digest: string): Promise<Buffer> {
    this.#mustStand();
    return new Promise((resolve, reject) => {
      this.#wanted.set(digest, { parts: [], missing: 0, resolve, reject });
      this.#send({ type: 'want', digest });
    });
  }

  /** The hub's messages about packs. */
  hear(message: Extract<HubMessage, { type: 'pack' | 'pack-kept' }>): void {
    if (message.type === 'pack-kept') {
      this.#underWay.delete(message.digest);
      this.#wake();
      return;
    }
    const wanted = this.#wanted.get(message.digest);
    if (wanted === undefined) return;
    if (message.bytes === null) {
      this.#wanted.delete(message.digest);
      wanted.reject(new Error('A pack of the checkpoint cannot be had.'));
      return;
    }
    wanted.missing = message.bytes;
    this.#coming = { digest: message.digest, wanted };
  }

  /** The next bytes of the pack that comes. */
  take(bytes: Buffer): void {
    const coming = this.#coming;
    if (coming === null) return;
    const { wanted } = coming;
    wanted.parts.push(bytes);
    wanted.missing -= bytes.length;
    if (wanted.missing > 0) return;
    this.#coming = null;
    this.#wanted.delete(coming.digest);
    wanted.resolve(Buffer.concat(wanted.parts));
  }

  #mustStand(): void {
    if (this.#socket.readyState !== this.#socket.OPEN) throw ended();
  }
}

function ended(): Error {
  return new Error('The link ended.');
}
