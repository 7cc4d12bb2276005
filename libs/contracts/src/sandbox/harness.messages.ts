import { z } from 'zod';
import { jsonObject } from '../json-schema.ts';
import type { StoredBlock } from '../wire/events.ts';
import type { UploadedFile } from './runner-link.messages.ts';
import type { RestoredFiles } from './sandbox.messages.ts';

/**
 * What a coding harness in a sandbox does, in the platform's own words: small, and versioned by the platform, whatever
 * protocol the runner drives the harness by. The harness's own lines are kept beside them as a blob.
 */
export const HARNESS_VOCABULARY = 1;

/** A runner cuts before that, so whatever is longer comes from no runner of ours. */
const HARNESS_TEXT_CHARS = 65_536;
const HARNESS_INPUT_CHARS = 524_288;
const text = z.string().max(HARNESS_TEXT_CHARS);
const input = jsonObject.refine((value) => JSON.stringify(value).length <= HARNESS_INPUT_CHARS, {
  error: `at most ${HARNESS_INPUT_CHARS} characters`,
});

export const harnessEvent = z.discriminatedUnion('type', [
  /** The harness took up the session: it still ran (`live`), it read its own files (`native`), or it begins (`new`). */
  z.object({
    type: z.literal('session.ready'),
    sessionId: z.string().max(256),
    continuity: z.enum(['live', 'native', 'new']),
  }),
  z.object({ type: z.literal('text.delta'), messageId: z.string().max(256).nullable(), text }),
  z.object({ type: z.literal('thinking') }),
  /** A tool call under the reference's names, beside what the harness calls it. `asks`: it waits for a permission. */
  z.object({
    type: z.literal('tool.started'),
    callId: z.string().max(256),
    name: z.string().max(256),
    input,
    native: z.object({ name: z.string().max(256), input }),
    asks: z.boolean(),
  }),
  z.object({ type: z.literal('tool.finished'), callId: z.string().max(256), isError: z.boolean(), text }),
  /** The last event of a prompt. `reason` is the harness's own word for why it stopped. */
  z.object({
    type: z.literal('turn.finished'),
    reason: z.string().max(64),
    error: z
      .object({
        /** `session-lost`: its files are gone, nothing was sent. `failed`: it said so. `ended`: its process did. */
        code: z.enum(['session-lost', 'failed', 'ended', 'not-installed', 'timed-out']),
        message: text,
      })
      .nullable(),
  }),
]);
export type HarnessEvent = z.infer<typeof harnessEvent>;

/** What a harness is started with; another one than the running harness has means that it is started anew. */
export const harnessStart = z.object({
  /** Name of its folder in the sandbox. */
  type: z.string().regex(/^[a-z][a-z0-9_]{0,31}$/),
  model: z.string(),
  system: z.string().nullable(),
  /** For each built-in tool whether the agent has it, and whether each call is asked about. */
  tools: z.record(z.string(), z.enum(['allow', 'ask', 'off'])),
  contextTokens: z.int().min(1),
  outputTokens: z.int().min(1),
});
export type HarnessStart = z.infer<typeof harnessStart>;

/**
 * `…link.prompt`: one prompt for the session's harness, idempotent by call id like a tool call: the runner journals it,
 * and asked again it goes on telling what comes after the event `after`. Several {@link PromptReply} come back.
 */
export interface PromptBody {
  readonly callId: string;
  /** As of exec. */
  readonly journalId?: string;
  readonly generation: number;
  readonly harness: HarnessStart;
  /** The harness's own session; null = a new one. */
  readonly sessionId: string | null;
  readonly content: readonly StoredBlock[];
  /** The session's files, put there before it begins. */
  readonly files: readonly UploadedFile[];
  readonly after: number;
}
export type PromptReply =
  | { readonly kind: 'alive' }
  | { readonly kind: 'restored'; readonly files: RestoredFiles }
  | { readonly kind: 'event'; readonly sequence: number; readonly event: HarnessEvent }
  | {
      readonly kind: 'done';
      /** As of a tool call: `unknown` and `cancelled` come without a `turn.finished`. */
      readonly outcome: 'completed' | 'unknown' | 'cancelled';
      /** The harness's own lines. */
      readonly raw: { readonly digest: string; readonly sizeBytes: number } | null;
    };

/** `…link.permit`: answers a tool call that asks. Told to a harness that does not ask (any more) it changes nothing. */
export interface PermitBody {
  readonly callId: string;
  readonly generation: number;
  readonly toolCallId: string;
  readonly allow: boolean;
}

/**
 * What the model door of the sandbox service asks the worker that runs a session's turn, at {@link modelDoorSubject}: no
 * responders means that no turn is open, and then no model may be used (M1, S4).
 */
export type DoorQuestion =
  | {
      readonly kind: 'begin';
      readonly model: string;
      /** A call without tools is a side call, a title for instance: metered, not shown. */
      readonly offersTools: boolean;
    }
  | ({ readonly kind: 'end'; readonly spanId: string | null; readonly model: string } & DoorUsage)
  | {
      readonly kind: 'failed';
      readonly spanId: string | null;
      readonly status: number;
      /** The beginning of the gateway's answer. */
      readonly body: string;
      readonly retryAfter: string | null;
    };

/** How a call that was answered ended; `complete` is false where the answer broke off or was not wanted any more. */
export interface DoorUsage {
  readonly complete: boolean;
  readonly usage: {
    readonly input_tokens: number;
    readonly output_tokens: number;
    readonly cache_creation_input_tokens: number;
    readonly cache_read_input_tokens: number;
  };
  readonly costUsd: number | null;
  readonly finishReason: string | null;
  readonly gatewayCallId: string | null;
  /** How many tools the answer calls. */
  readonly toolCalls: number;
}

export type DoorAnswer =
  /** Goes ahead; `spanId` is null for a side call. */
  | { readonly kind: 'go'; readonly spanId: string | null }
  /** To be asked again, from `begin`. */
  | { readonly kind: 'retry'; readonly afterMs: number }
  /** The harness gets this answer, which it takes as final. */
  | { readonly kind: 'refuse'; readonly status: number; readonly message: string }
  | { readonly kind: 'noted' };
