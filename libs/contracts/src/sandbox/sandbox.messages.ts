import { z } from 'zod';
import { jsonObject } from '../json-schema.ts';
import type { CloudConfig } from '../wire/environments.ts';

/**
 * Messages between the turn worker (session service) and the sandbox service.
 *
 * `cmd.sandbox.<sessionId>.ensure` goes to any replica (queue group), which tells what it waits for and then that the
 * runner is linked, or an AppError (`sandbox.isolation-unavailable`, `sandbox.start-failed`, `sandbox.disk-full`, …).
 * The other commands go to {@link sandboxLinkSubject}, which only the replica that holds the runner's link subscribes
 * to: no responders means that no link stands right now; the caller tries again until its own deadline.
 */
export const ensureSandboxBody = z.object({
  workspaceId: z.string(),
  sessionId: z.string(),
  environmentId: z.string(),
  environment: z.custom<CloudConfig>((value) => typeof value === 'object' && value !== null),
  contextKey: z.string().nullable(),
  generation: z.int(),
});
export type EnsureSandboxBody = z.infer<typeof ensureSandboxBody>;
export interface EnsureSandboxReply {
  readonly sandboxId: string;
  /** Made with the journal; another id than the one a call was opened under means that its journal is gone. */
  readonly journalId: string;
}

/** Why a sandbox is not there yet, or not any more. Codes are stable; the message has the particulars. */
export const SANDBOX_REASONS = [
  /** No node has room, or none that the environment's selector and tolerations allow. */
  'unschedulable',
  'image-pull',
  /** The workspace's quota is used up. */
  'quota-exceeded',
  /** Its runner ends again and again. */
  'crash-loop',
  /** The API server refuses or does not answer. */
  'cluster-unreachable',
  'cluster-refused',
  /** Nothing warm is left: it starts cold. */
  'pool-empty',
  /** The node it ran on does not answer. */
  'node-lost',
  /** The volume is not bound or not attached yet. */
  'volume-pending',
  /** The pod runs and its runner has not dialled yet. */
  'not-linked',
  /** It is being made, and nothing is wrong so far. */
  'starting',
] as const;
export type SandboxReasonCode = (typeof SANDBOX_REASONS)[number];
export interface SandboxReason {
  readonly code: SandboxReasonCode;
  readonly message: string;
}
/** How a session's event about a wait begins; the reason's message follows. */
export const WAITING_PREFIX = 'The sandbox cannot be had yet: ';

/**
 * Replies to ensure: `waiting` when there is a reason to tell, again at least every {@link ENSURE_ALIVE_MS}, so that a
 * silent service is noticed; `ready` is the last. An AppError ends the sequence too.
 */
export type EnsureSandboxUpdate =
  | { readonly kind: 'waiting'; readonly reason: SandboxReason | null }
  | ({ readonly kind: 'ready' } & EnsureSandboxReply);
export const ENSURE_ALIVE_MS = 1_000;

/** `…link.claim`: refuses lower generations from now on (T1), and says under which journal calls are taken. */
export interface ClaimBody {
  readonly generation: number;
}
/** `…link.bind`, by pod UID, to the replica that holds an unclaimed pod's link: it serves this sandbox from now on. */
export interface BindBody {
  readonly sandboxId: string;
}

/** `…link.exec`: idempotent by call id. Several {@link ExecReply} come back on the caller's inbox. */
export const execBody = z.object({
  sessionId: z.string(),
  callId: z.string(),
  /** The journal that it is for: under another it is not sent, which `sandbox.not-linked` says. Absent from releases before. */
  journalId: z.string().optional(),
  generation: z.int(),
  tool: z.enum(['bash', 'read', 'write', 'edit', 'glob', 'grep']),
  input: jsonObject,
  timeoutMs: z.int().min(1),
  /** What must lie in the sandbox before it runs, once for each journal; absent = nothing. */
  files: z.array(z.object({ path: z.string(), digest: z.string() })).optional(),
});
export type ExecBody = z.infer<typeof execBody>;

export interface ToolOutcome {
  /** `completed`: ran to its end (also with an error); `unknown`: started and lost; `cancelled`: stopped or never started. */
  readonly outcome: 'completed' | 'unknown' | 'cancelled';
  readonly isError: boolean;
  /** At most {@link TOOL_OUTPUT_CHARS} code units; a cut is marked in the text with the path that holds all of it. */
  readonly text: string;
  /** Blob with the whole output when `text` was cut. */
  readonly fullOutput: { readonly digest: string; readonly sizeBytes: number } | null;
}
/** `…link.checkpoint`: keeps workspace and home. Replies as exec's: `kept` is the last, and says that it is durable. */
export interface CheckpointBody {
  readonly sessionId: string;
  readonly generation: number;
  /** Of the sandbox that the session's calls went to; another one has nothing of them. */
  readonly journalId: string;
}
export interface CheckpointReply {
  readonly checkpointId: string;
  /** The files are as they were after every call whose result the session's log had up to this version. */
  readonly throughVersion: number;
}
export type CheckpointUpdate =
  | { readonly kind: 'alive' }
  | { readonly kind: 'kept'; readonly checkpoint: CheckpointReply };
/**
 * What a sandbox that began without files of the session was given: the files of a checkpoint, which are as
 * `throughVersion` says, or none, because none are kept.
 */
export interface RestoredFiles {
  readonly journalId: string;
  readonly checkpoint: CheckpointReply | null;
}
/**
 * Replies to exec. `restored` comes first, again for each call, where the sandbox began without files. `alive` comes at least once a second while the call runs, so a silent link is noticed; `done` is
 * the last. An AppError ends the sequence too (`sandbox.stale-generation` when a newer worker claimed the sandbox).
 */
export type ExecReply =
  | { readonly kind: 'alive' }
  | { readonly kind: 'restored'; readonly files: RestoredFiles }
  | { readonly kind: 'done'; readonly result: ToolOutcome };
export const EXEC_ALIVE_MS = 1_000;
/** What a tool result shows of its output; the rest is kept in a file of the sandbox and as a blob. */
export const TOOL_OUTPUT_CHARS = 30_000;

/** `…link.harvest`: puts what lies in the session's outputs folder into the blob store. Replies as exec's; `found` is the last. */
export interface HarvestBody {
  readonly sessionId: string;
  readonly generation: number;
  /** A larger file is left out. */
  readonly maxFileBytes: number;
}
export interface FoundOutput {
  /** Below the outputs folder. */
  readonly path: string;
  readonly digest: string;
  readonly sizeBytes: number;
}
/** What could not be had, and why. */
export interface LeftOutOutput {
  readonly path: string;
  readonly reason: string;
}
export interface FoundOutputs {
  readonly files: readonly FoundOutput[];
  readonly leftOut: readonly LeftOutOutput[];
}
export type HarvestUpdate = { readonly kind: 'alive' } | ({ readonly kind: 'found' } & FoundOutputs);

/** `…link.cancel`: kills the call's process tree, or leaves a tombstone when it never started. Answers its outcome. */
export const cancelBody = z.object({ sessionId: z.string(), callId: z.string(), generation: z.int() });
export type CancelBody = z.infer<typeof cancelBody>;
