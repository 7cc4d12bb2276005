import type { NativeCall } from '@holdfast/runner';
import { describe, expect, it } from '@jest/globals';
import { profile } from './profile.ts';

const call = (told: Partial<NativeCall>): NativeCall => ({
  ...{ name: 'Bash', kind: 'execute', input: {}, text: '', diffs: [], output: undefined, failed: false },
  terminal: { printed: '', exitCode: null },
  ...told,
});
const start = { type: 'claude_code', model: 'm', system: 'Be brief.', contextTokens: 1_000, outputTokens: 100 };
const places = { folder: '/f', workspace: '/w', home: '/h', door: 'http://127.0.0.1:1' };

describe('Claude Code', () => {
  it('has a rule for each of its tools, by what the agent has', () => {
    const tools = { bash: 'ask', read: 'allow', write: 'off', '*': 'off' } as const;
    const { files, sessionMeta } = profile.command({ ...start, tools }, places);
    const { permissions } = JSON.parse(files[0]?.content ?? '') as { permissions: Record<string, string[]> };
    expect(permissions).toMatchObject({ allow: ['Read'], ask: ['Bash'] });
    expect(permissions['deny']).toEqual(expect.arrayContaining(['Write', 'WebFetch', 'Agent', 'AskUserQuestion']));
    expect(sessionMeta).toEqual({ systemPrompt: { append: 'Be brief.' } });
  });

  it('asks for no other model than the agent’s', () => {
    const { env } = profile.command({ ...start, tools: {} }, places);
    const models = Object.entries(env).filter(([name]) => /^ANTHROPIC_.*MODEL$/.test(name));
    expect(models).toHaveLength(5);
    expect(models.every(([, model]) => model === 'm')).toBe(true);
  });

  it('has its tools under the reference’s names, and its results without its own words', () => {
    const input = { command: 'ls', description: 'Lists', timeout: 5 };
    expect(profile.toolOf(call({ input }))).toEqual({ name: 'bash', input: { command: 'ls', timeout_ms: 5 } });
    expect(profile.toolOf(call({ name: 'Skill', input: { skill: 'a' } }))).toEqual({
      name: 'Skill',
      input: { skill: 'a' },
    });
    expect(profile.resultOf(call({ output: 'one', text: '```console\none\n```' }))).toEqual({
      text: 'one',
      isError: false,
    });
    expect(profile.resultOf(call({ failed: true, output: 'Exit code 3\ntwo' }))).toEqual({
      text: 'two\n[exit code 3]',
      isError: true,
    });
  });
});
