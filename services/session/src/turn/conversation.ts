import { type JsonObject, type SessionEvent, type StoredBlock } from '@holdfast/contracts';

/** What the model has been told and has said, in order: the part of the log that a request is built from. */
export type ConversationItem =
  | { readonly role: 'user'; readonly content: readonly StoredBlock[] }
  | { readonly role: 'system'; readonly text: string }
  | {
      readonly role: 'assistant';
      readonly text: readonly StoredBlock[];
      readonly calls: readonly { readonly id: string; readonly name: string; readonly input: JsonObject }[];
    }
  | {
      readonly role: 'tool';
      readonly callId: string;
      readonly content: readonly StoredBlock[];
      readonly isError: boolean;
    };

type Assistant = Extract<ConversationItem, { role: 'assistant' }>;

/** The conversation of one session, folded in place: logs are long and every step would copy all of it otherwise. */
export class Conversation {
  #items: ConversationItem[] = [];
  /** The assistant item that the newest model call is writing. */
  #step: { -readonly [K in keyof Assistant]: Assistant[K] } | null = null;
  #lastUser: Extract<ConversationItem, { role: 'user' }> | null = null;
  #chars = 0;

  /** About how much text it holds. */
  get chars(): number {
    return this.#chars;
  }

  get items(): readonly ConversationItem[] {
    return this.#items;
  }

  /** One step of the fold. A compaction replaces what came before it by its summary, and the message that is at work. */
  apply(event: SessionEvent): void {
    switch (event.type) {
      case 'session.message_processed': {
        const { message } = event.data;
        if (message.type === 'system.message') {
          this.#add({ role: 'system', text: message.content.map((block) => block.text).join('\n') });
        } else {
          this.#lastUser = { role: 'user', content: message.content };
          this.#add(this.#lastUser);
        }
        return;
      }
      case 'span.model_request_start':
        this.#step = null;
        return;
      case 'agent.message':
        this.#chars += charsOf(event.data.content);
        this.#open().text = [...this.#open().text, ...event.data.content];
        return;
      case 'agent.tool_use':
      case 'agent.custom_tool_use':
        this.#chars += JSON.stringify(event.data.input).length;
        this.#open().calls = [...this.#open().calls, { id: event.id, name: event.data.name, input: event.data.input }];
        return;
      case 'agent.tool_result':
        this.#add(toolItem(event.data.tool_use_id, event.data));
        return;
      case 'user.custom_tool_result':
        this.#add(toolItem(event.data.custom_tool_use_id, event.data));
        return;
      case 'agent.thread_context_compacted': {
        const text = `Summary of the conversation so far:\n${event.data.summary}`;
        const last = this.#items.at(-1);
        const isAnswered = last?.role === 'assistant' && last.calls.length === 0;
        this.#items = [];
        this.#chars = 0;
        this.#add({ role: 'user', content: [{ type: 'text', text }] });
        if (this.#lastUser !== null && !isAnswered) this.#add(this.#lastUser);
        return;
      }
      default:
        return;
    }
  }

  #add(item: Exclude<ConversationItem, Assistant>): void {
    this.#step = null;
    this.#chars += item.role === 'system' ? item.text.length : charsOf(item.content);
    this.#items.push(item);
  }

  #open(): { -readonly [K in keyof Assistant]: Assistant[K] } {
    if (this.#step === null) {
      this.#step = { role: 'assistant', text: [], calls: [] };
      this.#items.push(this.#step);
    }
    return this.#step;
  }
}

function charsOf(blocks: readonly StoredBlock[]): number {
  return blocks.reduce(
    (sum, block) => sum + (block.type === 'text' ? block.text.length : JSON.stringify(block).length),
    0,
  );
}

function toolItem(callId: string, result: { content: readonly StoredBlock[]; is_error: boolean }) {
  return { role: 'tool' as const, callId, content: result.content, isError: result.is_error };
}
