import type { JsonObject, ModelUsage, Refusal, SessionError, ThinkingBlock } from '@holdfast/contracts';
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
  /** What the conversation's calls were made with; whether the model may call now is `mayCall`. */
  readonly tools: readonly ToolDefinition[];
  readonly mayCall: boolean;
  readonly effort: string;
  /** Upper bound on what the model may write, in tokens. */
  readonly maxOutputTokens: number;
}

/** A run of text, or of thinking, in the order in which the model wrote them. */
export type ReplyPart =
  | { readonly type: 'text'; readonly text: string }
  | { readonly type: 'thinking'; readonly blocks: readonly ThinkingBlock[] };

export interface ModelReply {
  readonly content: readonly ReplyPart[];
  /** `input` is null when the model wrote arguments that are no JSON object; `rawInput` is what it wrote. */
  readonly calls: readonly { readonly name: string; readonly input: JsonObject | null; readonly rawInput: string }[];
  readonly usage: ModelUsage;
  readonly costUsd: number | null;
  /** Why the model stopped, in the dialect's own words. */
  readonly finishReason: string | null;
  /** Set when the model, or a guard before it, refused to answer; the content is what came before that. */
  readonly refusal: Refusal | null;
  readonly gatewayCallId: string | null;
}

/** The next piece of part number `part` of a reply; the first one of a part of thinking may be empty. */
export interface ReplyPiece {
  readonly part: number;
  readonly type: ReplyPart['type'];
  readonly text: string;
}

/**
 * A model gateway.
 *
 * `stream` calls `onPiece` for each piece of text or thinking as it arrives and resolves with the whole answer. It throws
 * {@link ModelFailure}; when `signal` is aborted it throws the signal's reason and the connection is closed at once.
 */
export interface ModelGateway {
  stream(
    request: ModelRequest,
    options: { signal: AbortSignal; onPiece: (piece: ReplyPiece) => void },
  ): Promise<ModelReply>;
}

/** The text of a reply alone. */
export function textOf(reply: Pick<ModelReply, 'content'>): string {
  return reply.content.map((part) => (part.type === 'text' ? part.text : '')).join('');
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
