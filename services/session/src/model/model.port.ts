import type { JsonObject, ModelUsage, SessionError } from '@holdfast/contracts';
import type { ConversationItem } from '../turn/conversation.ts';

export interface ToolDefinition {
  readonly name: string;
  readonly description: string;
  readonly inputSchema: Readonly<Record<string, unknown>>;
}

export interface ModelRequest {
  readonly model: string;
  readonly system: string | null;
  readonly conversation: readonly ConversationItem[];
  readonly tools: readonly ToolDefinition[];
  readonly effort: string;
  /** Upper bound on what the model may write, in tokens. */
  readonly maxOutputTokens: number;
}

export interface ModelReply {
  readonly text: string;
  /** `input` is null when the model wrote arguments that are no JSON object; `rawInput` is what it wrote. */
  readonly calls: readonly { readonly name: string; readonly input: JsonObject | null; readonly rawInput: string }[];
  readonly usage: ModelUsage;
  readonly costUsd: number | null;
  readonly finishReason: string | null;
  readonly gatewayCallId: string | null;
}

/**
 * A model gateway in one dialect.
 *
 * `stream` calls `onText` for each piece of text as it arrives and resolves with the whole answer. It throws
 * {@link ModelFailure}; when `signal` is aborted it throws the signal's reason and the connection is closed at once.
 */
export interface ModelGateway {
  stream(request: ModelRequest, options: { signal: AbortSignal; onText: (text: string) => void }): Promise<ModelReply>;
}

/** A model call that failed: what the session's error says, and whether trying again can help. */
export class ModelFailure extends Error {
  override readonly name = 'ModelFailure';
  readonly errorType: SessionError['type'];
  readonly retryable: boolean;
  /** How long the gateway asks to wait, in milliseconds. */
  readonly retryAfterMs: number | null;
  /** The request was larger than the model's context. */
  readonly contextExceeded: boolean;

  constructor(
    message: string,
    facts: {
      errorType: SessionError['type'];
      retryable: boolean;
      retryAfterMs?: number | null;
      contextExceeded?: boolean;
      cause?: unknown;
    },
  ) {
    super(message, facts.cause === undefined ? undefined : { cause: facts.cause });
    this.errorType = facts.errorType;
    this.retryable = facts.retryable;
    this.retryAfterMs = facts.retryAfterMs ?? null;
    this.contextExceeded = facts.contextExceeded ?? false;
  }
}
