import type { ForkPoint, JsonObject, SessionEvent, StoredBlock, ThinkingBlock } from '@holdfast/contracts';
import { mcpToolName } from '../tools/tool-definitions.ts';

/** What the model has been told and has said, in order: the part of the log that a request is built from. */
export type ConversationItem =
  | { readonly role: 'user'; readonly content: readonly StoredBlock[] }
  | { readonly role: 'system'; readonly text: string }
  | {
      readonly role: 'assistant';
      /** The model that wrote it: another one cannot read its thinking. */
      readonly model: string;
      readonly content: readonly (StoredBlock | ThinkingBlock)[];
      readonly calls: readonly { readonly id: string; readonly name: string; readonly input: JsonObject }[];
    }
  | {
      readonly role: 'tool';
      readonly callId: string;
      readonly content: readonly StoredBlock[];
      readonly isError: boolean;
    };

/** True for thinking that its model takes back. */
export function isSigned(block: StoredBlock | ThinkingBlock): block is ThinkingBlock {
  return block.type === 'redacted_thinking' || (block.type === 'thinking' && block.signature !== null);
}

type Assistant = Extract<ConversationItem, { role: 'assistant' }>;

const FORKED =
  'This session was forked from another one. The conversation so far took place there; from here on it is independent. ' +
  'Your workspace is not the one of that session, and no process that you started runs here. ';

/** What the model is told of a fork. */
function forkNote({ checkpoint, missing_call_ids: missing = [] }: ForkPoint): string {
  if (checkpoint === undefined)
    return `${FORKED}It is new and empty: files that you made or read before are not in it. Make again what you need of them.`;
  const whole = `${FORKED}It began as a copy of that one, with the files as they were kept at this point or last before it. `;
  return missing.length === 0
    ? `${whole}Nothing of them is missing.`
    : `${whole}What these earlier calls did to files is missing: ${missing.join(', ')}. Check what you need, and do it again if it is right to.`;
}

/** The conversation of one session, folded in place: logs are long and every step would copy all of it otherwise. */
export class Conversation {
  #items: ConversationItem[] = [];
  /** The assistant item that the newest model call is writing. */
  #step: { -readonly [K in keyof Assistant]: Assistant[K] } | null = null;
  #lastUser: Extract<ConversationItem, { role: 'user' }> | null = null;
  #model = '';
  #chars = 0;
  /** Set until the model is told that it goes on in another session: with its next message. */
  #forkedFrom: ForkPoint | null = null;
  /** Messages that no harness has been asked yet, and those of its newest prompt. */
  #unasked: ConversationItem[] = [];
  #asked: readonly ConversationItem[] = [];

  /** What the newest prompt of a harness says. */
  get prompt(): readonly ConversationItem[] {
    return this.#asked;
  }
  /** What came before it. */
  get beforePrompt(): readonly ConversationItem[] {
    const [first] = this.#asked;
    return first === undefined ? this.#items : this.#items.slice(0, this.#items.indexOf(first));
  }

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
        if (this.#forkedFrom !== null) this.#add({ role: 'system', text: forkNote(this.#forkedFrom) });
        this.#forkedFrom = null;
        if (message.type === 'system.message') {
          this.#ask({ role: 'system', text: message.content.map((block) => block.text).join('\n') });
        } else {
          this.#lastUser = { role: 'user', content: message.content };
          this.#ask(this.#lastUser);
        }
        return;
      }
      case 'session.forked':
        // Not yet: results of the calls that are open here come first.
        this.#forkedFrom = event.data.from;
        this.#unasked = [];
        return;
      case 'session.harness_prompted':
        this.#asked = this.#unasked;
        this.#unasked = [];
        return;
      case 'session.harness_finished':
        // It never reached a harness.
        if (event.data.outcome === 'session-lost') this.#unasked = [...this.#asked, ...this.#unasked];
        return;
      case 'span.model_request_start':
        this.#step = null;
        this.#model = event.data.model;
        this.#unasked = [];
        return;
      case 'agent.message':
        this.#say(event.data.content);
        return;
      case 'agent.thinking':
        // The progress of a model that shows nothing of its thinking.
        if (event.data.blocks !== undefined) this.#say(event.data.blocks);
        return;
      case 'agent.mcp_tool_use': {
        const { mcp_server_name: server, name, input } = event.data;
        this.#call(event.id, mcpToolName(server, name), input);
        return;
      }
      case 'agent.tool_use':
      case 'agent.custom_tool_use':
        this.#call(event.id, event.data.name, event.data.input);
        return;
      case 'agent.tool_result':
      case 'user.tool_result':
        this.#add(toolItem(event.data.tool_use_id, event.data));
        return;
      case 'agent.mcp_tool_result':
        this.#add(toolItem(event.data.mcp_tool_use_id, event.data));
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

  #ask(item: Exclude<ConversationItem, Assistant>): void {
    this.#unasked.push(item);
    this.#add(item);
  }

  #add(item: Exclude<ConversationItem, Assistant>): void {
    this.#step = null;
    this.#chars += item.role === 'system' ? item.text.length : charsOf(item.content);
    this.#items.push(item);
  }

  #say(blocks: Assistant['content']): void {
    this.#chars += charsOf(blocks);
    this.#open().content = [...this.#open().content, ...blocks];
  }

  #call(id: string, name: string, input: JsonObject): void {
    this.#chars += JSON.stringify(input).length;
    this.#open().calls = [...this.#open().calls, { id, name, input }];
  }

  #open(): { -readonly [K in keyof Assistant]: Assistant[K] } {
    if (this.#step === null) {
      this.#step = { role: 'assistant', model: this.#model, content: [], calls: [] };
      this.#items.push(this.#step);
    }
    return this.#step;
  }
}

function charsOf(blocks: Assistant['content']): number {
  return blocks.reduce(
    (sum, block) => sum + (block.type === 'text' ? block.text.length : JSON.stringify(block).length),
    0,
  );
}

function toolItem(callId: string, result: { content: readonly StoredBlock[]; is_error: boolean }) {
  return { role: 'tool' as const, callId, content: result.content, isError: result.is_error };
}
