import { spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Readable, Writable } from 'node:stream';
import {
  type AgentContext,
  agent,
  methods,
  ndJsonStream,
  RequestError,
  type RequestPermissionResponse,
} from '@agentclientprotocol/sdk';

/**
 * A coding agent with one tool and no wits: the platform's specs run on it. It asks the model through the door as any
 * harness does, and it lies as some do: a failed model call ends its turn as if nothing had happened, with the error as
 * ordinary text.
 */
interface Message {
  readonly role: 'system' | 'user' | 'assistant' | 'tool';
  readonly content: string | null;
  readonly tool_calls?: readonly ModelCall[];
  readonly tool_call_id?: string;
}
interface ModelCall {
  readonly id: string;
  readonly type: 'function';
  readonly function: { readonly name: string; readonly arguments: string };
}
interface Chunk {
  readonly choices?: readonly {
    readonly delta?: {
      readonly content?: string | null;
      readonly tool_calls?: readonly {
        readonly index?: number;
        readonly id?: string | null;
        readonly function?: { readonly name?: string | null; readonly arguments?: string };
      }[];
    };
  }[];
}
interface Session {
  readonly cwd: string;
  readonly messages: Message[];
  cancel: AbortController;
}

// What its profile sets.
const env = (name: string): string => process.env[`SCRIPTED_${name}`] ?? '';
const BASH = {
  type: 'function',
  function: {
    name: 'bash',
    description: 'Run a shell command.',
    parameters: { type: 'object', properties: { command: { type: 'string' } }, required: ['command'] },
  },
};
const sessions = new Map<string, Session>();
const fileOf = (id: string): string => join(env('FOLDER'), `${id}.json`);

function save(id: string, session: Session): void {
  mkdirSync(env('FOLDER'), { recursive: true });
  writeFileSync(fileOf(id), JSON.stringify(session.messages));
}

function open(id: string, cwd: string, messages: Message[]): void {
  sessions.set(id, { cwd, messages, cancel: new AbortController() });
}

const app = agent({ name: 'scripted' });
app.onRequest(methods.agent.initialize, () => ({
  protocolVersion: 1,
  agentCapabilities: { loadSession: true },
  agentInfo: { name: 'scripted', version: '1' },
}));
app.onRequest(methods.agent.session.new, ({ params }) => {
  const sessionId = randomUUID();
  const system = env('SYSTEM');
  open(sessionId, params.cwd, system === '' ? [] : [{ role: 'system', content: system }]);
  return { sessionId };
});
app.onRequest(methods.agent.session.load, ({ params }) => {
  if (!/^[\w-]+$/.test(params.sessionId) || !existsSync(fileOf(params.sessionId)))
    throw RequestError.resourceNotFound(params.sessionId);
  const messages = JSON.parse(readFileSync(fileOf(params.sessionId), 'utf8')) as Message[];
  // What ran when it was killed has no result.
  for (const { id } of messages.at(-1)?.tool_calls ?? [])
    messages.push({ role: 'tool', tool_call_id: id, content: 'Interrupted.' });
  open(params.sessionId, params.cwd, messages);
  return {};
});
app.onNotification(methods.agent.session.cancel, ({ params }) => {
  sessions.get(params.sessionId)?.cancel.abort();
});
app.onRequest(methods.agent.session.prompt, async ({ params, client }) => {
  const { sessionId } = params;
  const session = sessions.get(sessionId);
  if (session === undefined) throw RequestError.resourceNotFound(sessionId);
  session.cancel = new AbortController();
  const { signal } = session.cancel;
  const text = params.prompt.map((block) => (block.type === 'text' ? block.text : `[${block.type}]`)).join('\n');
  session.messages.push({ role: 'user', content: text });
  try {
    for (;;) {
      const answer = await ask(client, sessionId, session.messages, signal);
      session.messages.push(answer);
      save(sessionId, session);
      const calls = answer.tool_calls ?? [];
      if (calls.length === 0) return { stopReason: 'end_turn' };
      for (const call of calls)
        session.messages.push({
          role: 'tool',
          tool_call_id: call.id,
          content: await runCall(client, sessionId, session.cwd, call, signal),
        });
    }
  } catch (error) {
    if (signal.aborted) return { stopReason: 'cancelled' };
    await say(client, sessionId, `Something went wrong: ${(error as Error).message}`);
    return { stopReason: 'end_turn' };
  } finally {
    save(sessionId, session);
  }
});

async function say(client: AgentContext, sessionId: string, text: string): Promise<void> {
  await client.notify(methods.client.session.update, {
    sessionId,
    update: { sessionUpdate: 'agent_message_chunk', content: { type: 'text', text } },
  });
}

async function ask(
  client: AgentContext,
  sessionId: string,
  messages: readonly Message[],
  signal: AbortSignal,
): Promise<Message> {
  const response = await fetch(`${env('DOOR')}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ model: env('MODEL'), messages, tools: [BASH], stream: true }),
    signal,
  });
  if (!response.ok || response.body === null) throw new Error(`HTTP ${response.status} ${await response.text()}`);
  let text = '';
  const calls: { id: string; name: string; args: string }[] = [];
  let rest = '';
  for await (const piece of response.body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + piece).split('\n');
    rest = lines.pop() ?? '';
    for (const line of lines) {
      if (!line.startsWith('data: {')) continue;
      const { delta } = (JSON.parse(line.slice(6)) as Chunk).choices?.[0] ?? {};
      if (delta?.content) {
        text += delta.content;
        await say(client, sessionId, delta.content);
      }
      for (const { index = 0, id, function: part } of delta?.tool_calls ?? []) {
        const call = (calls[index] ??= { id: '', name: '', args: '' });
        call.id += id ?? '';
        call.name += part?.name ?? '';
        call.args += part?.arguments ?? '';
      }
    }
  }
  return {
    role: 'assistant',
    content: text === '' ? null : text,
    ...(calls.length === 0
      ? {}
      : {
          tool_calls: calls.map(({ id, name, args }) => ({
            id,
            type: 'function' as const,
            function: { name, arguments: args },
          })),
        }),
  };
}

async function runCall(
  client: AgentContext,
  sessionId: string,
  cwd: string,
  call: ModelCall,
  signal: AbortSignal,
): Promise<string> {
  const { name } = call.function;
  const rawInput = JSON.parse(call.function.arguments || '{}') as { command?: string };
  const toolCall = { toolCallId: call.id, title: name, kind: 'execute' as const, rawInput };
  const tell = (update: { status: 'in_progress' | 'completed' | 'failed'; text?: string }): Promise<void> =>
    client.notify(methods.client.session.update, {
      sessionId,
      update: {
        sessionUpdate: 'tool_call_update',
        toolCallId: call.id,
        status: update.status,
        ...(update.text === undefined
          ? {}
          : { content: [{ type: 'content' as const, content: { type: 'text' as const, text: update.text } }] }),
      },
    });
  await client.notify(methods.client.session.update, {
    sessionId,
    update: { sessionUpdate: 'tool_call', status: 'pending', ...toolCall },
  });
  if (env('ASK') === '1') {
    const { outcome } = await client.request<RequestPermissionResponse>(methods.client.session.requestPermission, {
      sessionId,
      toolCall,
      options: [
        { optionId: 'yes', kind: 'allow_once', name: 'Yes' },
        { optionId: 'no', kind: 'reject_once', name: 'No' },
      ],
    });
    signal.throwIfAborted();
    if (outcome.outcome !== 'selected' || outcome.optionId !== 'yes') {
      await tell({ status: 'failed', text: 'Not allowed.' });
      return 'The user did not allow this.';
    }
  }
  await tell({ status: 'in_progress' });
  const { code, text } = await run(rawInput.command ?? '', cwd, signal);
  await tell({ status: code === 0 ? 'completed' : 'failed', text });
  return text;
}

function run(command: string, cwd: string, signal: AbortSignal): Promise<{ code: number | null; text: string }> {
  return new Promise((resolve, reject) => {
    const child = spawn('/bin/bash', ['-c', command], { cwd, stdio: ['ignore', 'pipe', 'pipe'], signal });
    let text = '';
    for (const pipe of [child.stdout, child.stderr])
      pipe.on('data', (bytes: Buffer) => {
        text += bytes.toString();
      });
    child.once('error', reject);
    child.once('close', (code) => resolve({ code, text }));
  });
}

app.connect(
  ndJsonStream(Writable.toWeb(process.stdout), Readable.toWeb(process.stdin) as unknown as ReadableStream<Uint8Array>),
);
