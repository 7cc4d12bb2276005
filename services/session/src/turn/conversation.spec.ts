import type { SessionEvent } from '@holdfast/contracts';
import { expect, it } from '@jest/globals';
import { Conversation } from './conversation.ts';

const text = (words: string) => [{ type: 'text', text: words }];
const said = (words: string) => ({
  type: 'session.message_processed',
  data: { message: { type: 'user.message', content: text(words) } },
});
const answered = (words: string) => ({ type: 'agent.message', data: { content: text(words) } });
const asked = { type: 'span.model_request_start', data: { model: 'm' } };
const thought = (...blocks: object[]) => ({ type: 'agent.thinking', data: { blocks } });
const called = (id: string) => ({ id, type: 'agent.tool_use', data: { name: 'bash', input: { command: id } } });
const result = (id: string) => ({
  type: 'agent.tool_result',
  data: { tool_use_id: id, content: text(`ran ${id}`), is_error: false },
});
const compacted = { type: 'agent.thread_context_compacted', data: { summary: 'so far' } };
function conversation(...events: object[]): Conversation {
  const folded = new Conversation();
  for (const event of events) folded.apply(event as SessionEvent);
  return folded;
}
const shape = ({ items }: Conversation): string[] =>
  items.map((item) => {
    if (item.role === 'assistant') return `assistant ${item.calls.map(({ id }) => id).join(',')}`;
    return item.role === 'system' ? 'system' : `${item.role} ${JSON.stringify(item.content)}`;
  });

it('puts the text and the parallel calls of one model step into one item, and a cut step into none', () => {
  const folded = conversation(
    said('a'),
    asked,
    asked,
    answered('x'),
    called('1'),
    called('2'),
    result('1'),
    result('2'),
  );
  expect(shape(folded)).toEqual([
    `user ${JSON.stringify(text('a'))}`,
    'assistant 1,2',
    `tool ${JSON.stringify(text('ran 1'))}`,
    `tool ${JSON.stringify(text('ran 2'))}`,
  ]);
});

it('keeps what the model thought where it thought it, with the model’s name', () => {
  const block = { type: 'thinking', thinking: 'hm', signature: 'sig' };
  const folded = conversation(said('a'), asked, thought(block), answered('x'), thought(block), called('1'), {
    type: 'agent.thinking',
    data: {},
  });
  expect(folded.items.at(-1)).toEqual({
    role: 'assistant',
    model: 'm',
    content: [block, ...text('x'), block],
    calls: [{ id: '1', name: 'bash', input: { command: '1' } }],
  });
});

it('is a summary after a compaction, with the message that is at work and without one that was answered', () => {
  const summary = `user ${JSON.stringify(text('Summary of the conversation so far:\nso far'))}`;
  const atWork = conversation(said('a'), asked, answered('x'), said('b'), asked, called('1'), result('1'), compacted);
  expect(shape(atWork)).toEqual([summary, `user ${JSON.stringify(text('b'))}`]);
  expect(shape(conversation(said('a'), asked, answered('x'), compacted))).toEqual([summary]);
});

it('knows about how much it holds', () => {
  const long = conversation(said('a'.repeat(1_000)), asked, answered('b'.repeat(500)));
  expect(long.chars).toBe(1_500);
  long.apply(compacted as SessionEvent);
  expect(long.chars).toBeLessThan(100);
});
