import { AppError, EVENTS_STREAM, eventSubject, RELAY_HINT, type StoredEvent } from '@holdfast/contracts';
import { type JetStreamClient, type JetStreamManager, jetstream, jetstreamManager } from '@nats-io/jetstream';
import { headers } from '@nats-io/transport-node';
import type { Bus, Registration } from './bus.ts';
import { deleteEventsStream, ensureStreams, type StreamLimits, streamInfo } from './streams.ts';

/** Where a reader of the log stands; compared by the log alone. */
export interface RelayCursor {
  readonly txid: string;
  readonly position: string;
}

/** What the relay needs of the log; the session service implements it over Postgres. */
export interface RelaySource {
  readAll(options: {
    after: RelayCursor;
    limit: number;
  }): Promise<{ events: StoredEvent[]; cursors: RelayCursor[]; cursor: RelayCursor }>;
  loadCheckpoint(): Promise<RelayCursor | null>;
  saveCheckpoint(cursor: RelayCursor): Promise<void>;
  /** Takes the leadership when it is free; `lost` settles when it is gone. */
  tryLead(): Promise<{ readonly lost: Promise<void>; release(): Promise<void> } | null>;
}

const START: RelayCursor = { txid: '0', position: '0' };
const CURSOR = 'Holdfast-Cursor';
/** Events above this many characters travel without their data; consumers read it from the log. */
const MAX_MESSAGE_CHARS = 700_000;
const BATCH = 500;

export interface RelayOptions {
  readonly bus: Bus;
  readonly source: RelaySource;
  readonly limits?: StreamLimits;
  /** Fallback for a lost hint, in milliseconds. */
  readonly pollMs?: number;
  readonly onError?: (error: unknown) => void;
}

export interface RelayFigures {
  readonly leading: boolean;
  readonly published: number;
  /** Age of the oldest event that is not relayed yet, in milliseconds; 0 = none known. */
  readonly lagMs: number;
}

/**
 * Publishes the log to JetStream in log order, one leader at a time.
 *
 * Promises: every event is in EVENTS at least once, in order, as long as the stream's limits hold it. Not exactly once:
 * consumers deduplicate by event id (B3). A leader publishes with the expected last sequence, so a stopped one cannot
 * publish late (B2); a new leader resumes after the stream's own last message. An emptied stream is refilled.
 */
export class Relay {
  readonly #options: Required<Pick<RelayOptions, 'bus' | 'source' | 'pollMs' | 'onError'>> & {
    limits: StreamLimits | undefined;
  };
  readonly #stopping = new AbortController();
  #loop: Promise<void> | null = null;
  #hint: Registration | null = null;
  #wake: () => void = () => undefined;
  #hinted = false;
  #leading = false;
  #published = 0;
  #lagMs = 0;

  constructor(options: RelayOptions) {
    this.#options = {
      ...options,
      pollMs: options.pollMs ?? 500,
      onError: options.onError ?? (() => undefined),
      limits: options.limits,
    };
  }

  get figures(): RelayFigures {
    return { leading: this.#leading, published: this.#published, lagMs: this.#lagMs };
  }

  start(): void {
    this.#hint = this.#options.bus.subscribeLive(RELAY_HINT, () => this.hint());
    this.#loop = this.#run();
  }

  /** Something was committed. */
  hint(): void {
    this.#hinted = true;
    this.#wake();
  }

  async stop(): Promise<void> {
    this.#stopping.abort();
    this.#wake();
    await this.#hint?.stop();
    await this.#loop;
  }

  get #stopped(): boolean {
    return this.#stopping.signal.aborted;
  }

  async #run(): Promise<void> {
    while (!this.#stopped) {
      try {
        const lead = await this.#options.source.tryLead();
        if (lead === null) {
          await this.#pause(1_000);
          continue;
        }
        let lost = false;
        void lead.lost.then(() => {
          lost = true;
          this.#wake();
        });
        try {
          this.#leading = true;
          await this.#lead(() => lost || this.#stopped);
        } finally {
          this.#leading = false;
          await lead.release();
        }
      } catch (error) {
        if (this.#stopped) return;
        this.#options.onError(error);
        await this.#pause(500);
      }
    }
  }

  async #lead(over: () => boolean): Promise<void> {
    const { bus, source } = this.#options;
    const manager = await jetstreamManager(bus.connection, { checkAPI: false });
    const client = jetstream(bus.connection);
    await ensureStreams(bus, this.#options.limits);
    let { cursor, sequence } = await this.#resume(manager);
    let checkedAt = Date.now();
    while (!over()) {
      this.#hinted = false;
      const page = await source.readAll({ after: cursor, limit: BATCH });
      if (page.events.length === 0) {
        this.#lagMs = 0;
        if (!this.#hinted) await this.#pause(this.#options.pollMs);
        if (Date.now() - checkedAt > 2_000) {
          checkedAt = Date.now();
          // Somebody may have emptied or removed the stream; the log has it all.
          const info = await streamInfo(manager, EVENTS_STREAM);
          if (info === null || info.state.last_seq !== sequence || (info.state.messages === 0 && sequence > 0)) {
            await ensureStreams(bus, this.#options.limits);
            ({ cursor, sequence } = await this.#resume(manager));
          }
        }
        continue;
      }
      this.#lagMs = Math.max(0, Date.now() - Date.parse(page.events[0]?.recordedAt ?? ''));
      sequence = await this.#publish(client, page, sequence);
      this.#published += page.events.length;
      cursor = page.cursor;
      await source.saveCheckpoint(cursor);
    }
  }

  /** Publishes a page in order, pipelined; each message names the sequence it must follow. */
  async #publish(
    client: JetStreamClient,
    page: { events: StoredEvent[]; cursors: RelayCursor[] },
    sequence: number,
  ): Promise<number> {
    const acks = await Promise.allSettled(
      page.events.map((event, i) => {
        const all = headers();
        const at = page.cursors[i] ?? START;
        all.set(CURSOR, `${at.txid}/${at.position}`);
        let body = JSON.stringify(event);
        if (body.length > MAX_MESSAGE_CHARS) {
          all.set('Holdfast-Data', 'in-log');
          body = JSON.stringify({ ...event, data: {} });
        }
        return client.publish(eventSubject(event.streamId, event.type), body, {
          msgID: event.id,
          headers: all,
          timeout: 5_000,
          expect: { lastSequence: sequence + i, streamName: EVENTS_STREAM },
        });
      }),
    );
    for (const ack of acks) {
      if (ack.status === 'rejected') throw ack.reason;
      if (ack.value.duplicate) {
        // The window knows the id, the stream may not hold it any more: only a new stream is sure (B1).
        await deleteEventsStream(this.#options.bus);
        throw new AppError(
          'conflict',
          'relay.duplicate',
          'JetStream took an event for a duplicate; the stream is made anew.',
        );
      }
    }
    return sequence + page.events.length;
  }

  /** After the stream's own last message, never after the checkpoint alone (B2); an empty stream is filled from the start. */
  async #resume(manager: JetStreamManager): Promise<{ cursor: RelayCursor; sequence: number }> {
    const info = await streamInfo(manager, EVENTS_STREAM);
    if (info === null) throw new AppError('unavailable', 'relay.no-stream', 'The stream EVENTS is not there yet.');
    if (info.state.messages === 0) {
      const agedMs = Date.now() - Date.parse(info.state.last_ts);
      if (info.state.last_seq > 0 && info.config.max_age > 0 && agedMs * 1e6 > info.config.max_age) {
        // Nobody emptied it: its messages grew too old while nothing happened.
        return { cursor: (await this.#options.source.loadCheckpoint()) ?? START, sequence: info.state.last_seq };
      }
      if (info.state.last_seq > 0) {
        await deleteEventsStream(this.#options.bus);
        await ensureStreams(this.#options.bus, this.#options.limits);
      }
      return { cursor: START, sequence: 0 };
    }
    const cursor = await lastCursor(manager, info.state.last_seq);
    // What the stream holds was acknowledged, whatever the checkpoint says: behind it events would be lost after a
    // power failure of the broker, and ahead of it they would be stored twice.
    return { cursor, sequence: info.state.last_seq };
  }

  #pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
      if (this.#stopped) this.#wake();
    });
  }
}

/** Place in the log of the last message in EVENTS; null when the stream is empty or not there. */
export async function relayedThrough(bus: Bus): Promise<RelayCursor | null> {
  const manager = await jetstreamManager(bus.connection, { checkAPI: false });
  const info = await streamInfo(manager, EVENTS_STREAM);
  return info === null || info.state.messages === 0 ? null : lastCursor(manager, info.state.last_seq);
}

async function lastCursor(manager: JetStreamManager, sequence: number): Promise<RelayCursor> {
  const last = await manager.streams.getMessage(EVENTS_STREAM, { seq: sequence });
  const [txid, position] = (last?.header.get(CURSOR) ?? '').split('/');
  if (txid === undefined || position === undefined || txid === '')
    throw new AppError('defect', 'relay.foreign-message', 'The last message of EVENTS was not published by a relay.');
  return { txid, position };
}
