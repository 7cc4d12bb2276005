import { setTimeout as sleep } from 'node:timers/promises';
import { type Command, type JsonObject, type StoredEvent } from '@holdfast/contracts';
import {
  type CompanionStatement,
  derivedEventId,
  type EventLog,
  findRepeated,
  idempotencyStatement,
  isKeyConflict,
} from '@holdfast/event-store';
import type pg from 'pg';

/** A command stores at most so many events of its own (50 client events, their stamps, a turn's start). */
const MAX_COMMAND_EVENTS = 256;
/** How long a retry waits for the first attempt, which may still be on its way to its commit. */
const TWIN_WAIT_MS = 250;

/** Metadata that every event of a command carries. */
export function commandMetadata(command: Command): JsonObject {
  return {
    command_id: command.commandId,
    actor: { type: command.actor.type, id: command.actor.id },
    ...(command.traceparent === null ? {} : { traceparent: command.traceparent }),
  };
}

/**
 * Runs a command once for a request and its retries (T5). The idempotency row holds the command's id; a repeat's answer
 * is built again from the events of that command, so no answer is stored twice and none can be stale.
 */
export class Idempotent {
  readonly #pool: pg.Pool;
  readonly #log: EventLog;

  constructor(pool: pg.Pool, log: EventLog) {
    this.#pool = pool;
    this.#log = log;
  }

  /**
   * `work` gets the statements that must go into its append. `answer` builds the reply from the events that an earlier
   * attempt stored. @throws AppError `idempotency.key-reused`
   */
  async run<T>(
    command: Command,
    answer: (events: readonly StoredEvent[]) => T | Promise<T>,
    work: (claim: readonly CompanionStatement[]) => Promise<T>,
  ): Promise<T> {
    const { idempotency, workspaceId, commandId } = command;
    const earlier = await this.#earlier(command);
    if (earlier !== null) return answer(earlier);
    try {
      return await work(idempotency === null ? [] : [idempotencyStatement(workspaceId, idempotency, commandId)]);
    } catch (error) {
      // The first of two at once may have been stored only now.
      if (!isKeyConflict(error) && command.again !== true) throw error;
      const first = await this.#earlier(command);
      if (first === null) throw error;
      return answer(first);
    }
  }

  /** What this command stored when it was asked for before, or the request that it repeats; null = nothing. */
  async #earlier({ commandId, again, idempotency, workspaceId }: Command): Promise<readonly StoredEvent[] | null> {
    const own = again === true ? await this.#eventsOf(commandId) : [];
    if (own.length > 0) return own;
    if (idempotency === null || (idempotency.key === null && idempotency.attempt === 0)) return null;
    let repeated = await findRepeated(this.#pool, workspaceId, idempotency, again);
    if (repeated === null && idempotency.key === null) {
      await sleep(TWIN_WAIT_MS);
      repeated = await findRepeated(this.#pool, workspaceId, idempotency, again);
    }
    return repeated === null ? null : this.#eventsOf(repeated);
  }

  async #eventsOf(commandId: string): Promise<readonly StoredEvent[]> {
    const ids = Array.from({ length: MAX_COMMAND_EVENTS }, (_, n) => derivedEventId(commandId, n));
    return this.#log.findEvents(ids);
  }
}
