import { createHash } from 'node:crypto';
import { AppError, type JsonObject, type StoredEvent } from '@holdfast/contracts';

/** An event before it is stored, as the newest version of its type has it. Its id is unique in the whole log; {@link derivedEventId} makes it from the command. */
export interface NewEvent {
  readonly id: string;
  readonly type: string;
  readonly data: JsonObject;
  readonly metadata?: JsonObject;
}

/** What one append asks of one stream. */
export interface StreamAppend {
  readonly streamId: string;
  readonly workspaceId: string;
  /** The version the decision saw; 0 = the stream must not exist. Absent = no check, under the row lock. */
  readonly expectedVersion?: number;
  /**
   * The stream does not exist yet and begins with this one's events up to `expectedVersion`, by reference: its own
   * versions go on from there. Both are of one workspace. @throws AppError `log.fork-depth`
   */
  readonly forkOf?: string;
  /** Fence: the lease's generation must be this one. With `lease`: the generation that is being taken. */
  readonly generation?: number;
  /** Take the lease: `generation` must be the row's + 1, and the lease free, run out, or `owner`'s own. */
  readonly lease?: { readonly owner: string; readonly ttlMs: number };
  /** Free the lease with the same commit. */
  readonly releaseLease?: boolean;
  readonly events: readonly NewEvent[];
}

/** SQL that must commit together with the events. `rows`: how many rows it must touch, else the append is refused. */
export interface CompanionStatement {
  readonly text: string;
  readonly values: readonly unknown[];
  readonly rows?: number;
}

export interface AppendRequest {
  /** One or several streams, each named once: all or nothing. */
  readonly appends: readonly StreamAppend[];
  readonly statements?: readonly CompanionStatement[];
  /** Wall-clock time (ms) after which a lost connection is not retried and a waiting append is not begun. */
  readonly deadlineAtMs?: number;
}

export interface AppendResult {
  readonly streams: readonly {
    readonly streamId: string;
    readonly fromVersion: number;
    readonly toVersion: number;
    readonly events: readonly StoredEvent[];
  }[];
}

const NAMESPACE = Buffer.from('6f6c64666173742d4c4f472d65766e74', 'hex');

/** The id of the n-th event of a command: UUIDv5, so a repeated decision gets the same ids and cannot be stored twice. */
export function derivedEventId(commandId: string, n: number): string {
  const hash = createHash('sha1').update(NAMESPACE).update(`${commandId}#${n}`).digest();
  hash[6] = ((hash[6] ?? 0) & 0x0f) | 0x50;
  hash[8] = ((hash[8] ?? 0) & 0x3f) | 0x80;
  return `sevt_${hash.toString('hex', 0, 16)}`;
}

/** Which half of the append's predicate failed (L1). */
export type RefusalCode =
  /** Somebody appended meanwhile: read the rest and decide again. */
  | 'log.version-conflict'
  /** A newer worker holds the session: stop. */
  | 'log.generation-fenced'
  /** Another owner's lease is alive. */
  | 'log.lease-held';

const REFUSALS: Readonly<Record<string, { kind: 'conflict' | 'rejected'; code: RefusalCode; text: string }>> = {
  version: { kind: 'conflict', code: 'log.version-conflict', text: 'is at another version than the decision saw' },
  generation: { kind: 'rejected', code: 'log.generation-fenced', text: 'is held by another generation' },
  lease: { kind: 'conflict', code: 'log.lease-held', text: 'is leased by another worker' },
};

/** An append that was refused; nothing of it was stored. */
export function refusal(verdict: string, streamId: string, version: number, generation: number): AppError {
  const known = REFUSALS[verdict];
  if (known === undefined) {
    return new AppError('defect', `log.${verdict}`, `The append to ${streamId} was refused: ${verdict}.`);
  }
  return new AppError(known.kind, known.code, `Stream ${streamId} ${known.text}.`, {
    details: { streamId, actualVersion: version, actualGeneration: generation },
  });
}
