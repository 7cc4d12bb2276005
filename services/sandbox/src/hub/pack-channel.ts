import { createHash } from 'node:crypto';
import { type HubMessage, PACKS_UNDER_WAY, type RunnerMessage } from '@holdfast/contracts';
import type { WebSocket } from 'ws';

const PIECE_BYTES = 512 * 1024;

/** Where a runner's packs go to, and where those that it needs come from. */
export interface Packs {
  /** Resolves once it is kept. */
  take(digest: string, bytes: Buffer): Promise<void>;
  give(digest: string): Promise<Buffer>;
}

/**
 * Packs over a runner's link. A runner may have {@link PACKS_UNDER_WAY} that are not kept yet and as many that it waits
 * for, so what a link holds in memory is bounded. A pack is believed when its bytes have its digest.
 */
export class PackChannel {
  readonly #socket: WebSocket;
  readonly #packs: Packs;
  readonly #send: (message: HubMessage) => void;
  #coming: { readonly digest: string; readonly bytes: Buffer; at: number } | null = null;
  #underWay = 0;
  #wanted = 0;
  /** Packs go to the runner one after another. */
  #giving: Promise<void> = Promise.resolve();

  constructor(socket: WebSocket, packs: Packs, send: (message: HubMessage) => void) {
    this.#socket = socket;
    this.#packs = packs;
    this.#send = send;
  }

  /** What a runner says about packs. Returns what is wrong with it; null = nothing. */
  hear(message: Extract<RunnerMessage, { type: 'pack' | 'want' }>): string | null {
    if (message.type === 'pack') {
      if (this.#coming !== null || this.#underWay >= PACKS_UNDER_WAY) return 'it sent more packs than it may';
      // However small the pieces are in which it comes, it takes no more than this.
      this.#coming = { digest: message.digest, bytes: Buffer.allocUnsafe(message.bytes), at: 0 };
      return null;
    }
    // The one that is being written, and the next.
    if (this.#wanted > PACKS_UNDER_WAY) return 'it wanted more packs than it may';
    this.#wanted += 1;
    this.#giving = this.#giving.then(() => this.#give(message.digest)).finally(() => (this.#wanted -= 1));
    return null;
  }

  /** The next bytes of a pack. Returns what is wrong with them; null = nothing. */
  bytes(piece: Buffer): string | null {
    const coming = this.#coming;
    if (coming === null || piece.length === 0 || piece.length > coming.bytes.length - coming.at)
      return 'it sent bytes of no pack';
    coming.at += piece.copy(coming.bytes, coming.at);
    if (coming.at < coming.bytes.length) return null;
    this.#coming = null;
    const { digest, bytes } = coming;
    if (createHash('sha256').update(bytes).digest('hex') !== digest) return 'it sent a pack under the name of another';
    this.#underWay += 1;
    // Whoever takes the checkpoint hears of a failure; the runner need not wait for that.
    void this.#packs
      .take(digest, bytes)
      .catch(() => undefined)
      .finally(() => {
        this.#underWay -= 1;
        this.#send({ type: 'pack-kept', digest });
      });
    return null;
  }

  async #give(digest: string): Promise<void> {
    const bytes = await this.#packs.give(digest).catch(() => null);
    this.#send({ type: 'pack', digest, bytes: bytes?.length ?? null });
    if (bytes === null) return;
    for (let at = 0; at < bytes.length; at += PIECE_BYTES) {
      // One that is gone is noticed by whoever waits for the answer.
      const gone = await new Promise((sent) => this.#socket.send(bytes.subarray(at, at + PIECE_BYTES), sent));
      if (gone !== undefined && gone !== null) return;
    }
  }
}
