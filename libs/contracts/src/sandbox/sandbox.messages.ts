import { z } from 'zod';
import { jsonObject } from '../json-schema.ts';
import type { EnvironmentConfig } from '../wire/environments.ts';

/**
 * Messages between the turn worker (session service) and the sandbox service.
 *
 * `cmd.sandbox.<sessionId>.ensure` goes to any replica (queue group) and answers when the runner is linked, or with an
 * AppError (`sandbox.isolation-unavailable`, `sandbox.start-failed`, `sandbox.disk-full`, …). The other commands go to
 * {@link sandboxLinkSubject}, which only the replica that holds the runner's link subscribes to: no responders means
 * that no link stands right now; the caller tries again until its own deadline.
 */
export const ensureSandboxBody = z.object({
  workspaceId: z.string(),
  sessionId: z.string(),
  environmentId: z.string(),
  environment: z.custom<EnvironmentConfig>((value) => typeof value === 'object' && value !== null),
  contextKey: z.string().nullable(),
  generation: z.int(),
});
export type EnsureSandboxBody = z.infer<typeof ensureSandboxBody>;
export interface EnsureSandboxReply {
  readonly sandboxId: string;
  /** Made with the journal; another id than the one a call was opened under means that its journal is gone. */
  readonly journalId: string;
}

/** `…link.exec`: idempotent by call id. Several {@link ExecReply} come back on the caller's inbox. */
export const execBody = z.object({
  sessionId: z.string(),
  callId: z.string(),
  generation: z.int(),
  tool: z.enum(['bash', 'read', 'write', 'edit', 'glob', 'grep']),
  input: jsonObject,
  timeoutMs: z.int().min(1),
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
/**
 * Replies to exec. `alive` comes at least once a second while the call runs, so a silent link is noticed; `done` is
 * the last. An AppError ends the sequence too (`sandbox.stale-generation` when a newer worker claimed the sandbox).
 */
export type ExecReply = { readonly kind: 'alive' } | { readonly kind: 'done'; readonly result: ToolOutcome };
export const EXEC_ALIVE_MS = 1_000;
/** What a tool result shows of its output; the rest is kept in a file of the sandbox and as a blob. */
export const TOOL_OUTPUT_CHARS = 30_000;

/** `…link.cancel`: kills the call's process tree, or leaves a tombstone when it never started. Answers its outcome. */
export const cancelBody = z.object({ sessionId: z.string(), callId: z.string(), generation: z.int() });
export type CancelBody = z.infer<typeof cancelBody>;
