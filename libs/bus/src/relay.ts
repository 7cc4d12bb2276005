import { channel } from 'node:diagnostics_channel';
import { AppError, EVENTS_STREAM, eventSubject, RELAY_HINT, type StoredEvent } from '@holdfast/contracts';
import {
  type JetStreamClient,
  type JetStreamManager,
  jetstream,
  jetstreamManager,
  type StreamState,
} from '@nats-io/jetstream';
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
  /** Where an event stands in this log, and when the one before it was recorded; null when the log does not hold it. */
  locate(eventId: string): Promise<{ readonly cursor: RelayCursor; readonly previousAt: string | null } | null>;
  loadCheckpoint(): Promise<RelayCursor | null>;
  saveCheckpoint(cursor: RelayCursor): Promise<void>;
  /** Takes the leadership when it is free; `lost` settles when it is gone. */
  tryLead(): Promise<{ readonly lost: Promise<void>; release(): Promise<void> } | null>;
}

const encoder = new TextEncoder();
/** Named points at which specs kill the process. */
const step = channel('holdfast:step');
const START: RelayCursor = { txid: '0', position: '0' };
const MESSAGE_ID = 'Nats-Msg-Id';
/** Events above this many bytes travel without their data; consumers read it from the log. Below NATS' default bound (B4). */
const MAX_MESSAGE_BYTES = 700_000;
const BATCH = 500;
/** How often a leader looks whether the stream is still what it made of it. */
const CHECK_MS = 2_000;

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
 * publish late (B2); a new leader resumes after the stream's own last message. A stream that was emptied, has a hole that
 * its limits did not make, or belongs to another log is made anew and refilled.
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
    let at = await this.#resume(manager);
    let checkedAt = Date.now();
    while (!over()) {
      if (Date.now() - checkedAt > CHECK_MS) {
        checkedAt = Date.now();
        const state = (await streamInfo(manager, EVENTS_STREAM))?.state;
        if (state?.last_seq !== at.sequence || state.first_seq !== at.firstSequence || hasHoles(state))
          at = await this.#resume(manager);
      }
      this.#hinted = false;
      const page = await source.readAll({ after: at.cursor, limit: BATCH });
      if (page.events.length === 0) {
        this.#lagMs = 0;
        if (!this.#hinted) await this.#pause(this.#options.pollMs);
        continue;
      }
      this.#lagMs = Math.max(0, Date.now() - Date.parse(page.events[0]?.recordedAt ?? ''));
      const sequence = await this.#publish(manager, client, page, at.sequence);
      this.#published += page.events.length;
      at = { ...at, sequence, cursor: page.cursor };
      step.publish('relay.published');
      await source.saveCheckpoint(at.cursor);
      step.publish('relay.checkpointed');
    }
  }

  /** Publishes a page in order, pipelined; each message names the sequence it must follow. */
  async #publish(
    manager: JetStreamManager,
    client: JetStreamClient,
    page: { events: StoredEvent[] },
    sequence: number,
  ): Promise<number> {
    const acks = await Promise.allSettled(
      page.events.map((event, i) => {
        const all = headers();
        let body = encoder.encode(JSON.stringify(event));
        if (body.length > MAX_MESSAGE_BYTES) {
          all.set('Holdfast-Data', 'in-log');
          body = encoder.encode(JSON.stringify({ ...event, data: {} }));
        }
        return client.publish(eventSubject(event.streamId, event.type), body, {
          msgID: event.id,
          headers: all,
          timeout: 5_000,
          expect: { lastSequence: sequence + i, streamName: EVENTS_STREAM },
        });
      }),
    );
    for (const [i, ack] of acks.entries()) {
      if (ack.status === 'rejected') throw ack.reason;
      if (!ack.value.duplicate) continue;
      const held = await manager.streams.getMessage(EVENTS_STREAM, { seq: ack.value.seq });
      // The window may know an id that the stream does not hold any more: only a new stream is sure (B1).
      if (held?.header.get(MESSAGE_ID) !== page.events[i]?.id) await deleteEventsStream(this.#options.bus);
      throw new AppError('conflict', 'relay.duplicate', 'JetStream took an event for a duplicate of one it knows.');
    }
    return sequence + page.events.length;
  }

  /**
   * Goes on after the stream's own last message, never after the checkpoint alone (B2). A stream that is empty, that has
   * a hole, or that holds what this log does not know is made anew and filled from the start.
   */
  async #resume(manager: JetStreamManager): Promise<Resumed> {
    const { bus, source, limits } = this.#options;
    await ensureStreams(bus, limits);
    const info = await streamInfo(manager, EVENTS_STREAM);
    if (info === null) throw new AppError('unavailable', 'relay.no-stream', 'The stream EVENTS is not there yet.');
    const { state, config } = info;
    const place = { sequence: state.last_seq, firstSequence: state.first_seq };
    if (state.last_seq === 0) return { ...place, cursor: START };
    const maxAgeMs = config.max_age > 0 ? config.max_age / 1e6 : Number.POSITIVE_INFINITY;
    const isYoung = (at: string): boolean => Date.now() - Date.parse(at) < maxAgeMs;
    if (state.messages === 0) {
      // Nobody emptied it when its messages grew too old while nothing happened.
      if (!isYoung(state.last_ts)) return { ...place, cursor: (await source.loadCheckpoint()) ?? START };
    } else if (!hasHoles(state)) {
      const [first, last] = await Promise.all(
        [state.first_seq, state.last_seq].map(async (seq) => source.locate(await messageId(manager, seq))),
      );
      const isFull = config.max_bytes > 0 && state.bytes + 4 * MAX_MESSAGE_BYTES > config.max_bytes;
      const isWhole = first?.previousAt == null || isFull || !isYoung(first.previousAt);
      if (first != null && last != null && isWhole) return { ...place, cursor: last.cursor };
    }
    await deleteEventsStream(bus);
    await ensureStreams(bus, limits);
    return { cursor: START, sequence: 0, firstSequence: 0 };
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

/** Where a leader stands: in the log, and in the stream. */
interface Resumed {
  readonly cursor: RelayCursor;
  readonly sequence: number;
  readonly firstSequence: number;
}

/** Messages vanish from the beginning of a stream by its limits, from its middle only by somebody's hand. */
function hasHoles({ first_seq: first, last_seq: last, messages }: StreamState): boolean {
  return messages > 0 && messages !== last - first + 1;
}

async function messageId(manager: JetStreamManager, sequence: number): Promise<string> {
  const message = await manager.streams.getMessage(EVENTS_STREAM, { seq: sequence });
  if (message === null)
    throw new AppError('unavailable', 'relay.stream-moved', 'EVENTS changed while it was looked at.');
  return message.header.get(MESSAGE_ID);
}

/** Place in the log of the last message in EVENTS; null when the stream is empty or not there. */
export async function relayedThrough(bus: Bus, source: RelaySource): Promise<RelayCursor | null> {
  const manager = await jetstreamManager(bus.connection, { checkAPI: false });
  const info = await streamInfo(manager, EVENTS_STREAM);
  if (info === null || info.state.messages === 0) return null;
  return (await source.locate(await messageId(manager, info.state.last_seq)))?.cursor ?? null;
}
