'use client';
import { type ChatItem, type ContentBlock, SANDBOX_HINTS, type SandboxWait, type ToolItem } from '@holdfast/contracts';
import {
  AlertTriangle,
  Ban,
  Brain,
  Check,
  ChevronRight,
  CircleDashed,
  Clock,
  FileText,
  GitFork,
  Hourglass,
  Loader2,
  X,
} from 'lucide-react';
import Link from 'next/link';
import { memo, type ReactNode, useId, useState } from 'react';
import { attachedFile } from '../lib/attachments.ts';
import type { ForkPlace } from '../lib/forks.ts';
import { bytes, dateTime, number, seconds, timeOfDay } from '../lib/format.ts';
import { reasonWords } from '../lib/sandboxes.ts';
import { AttachedFile } from './attachment-list.tsx';
import { COMPOSER_ID } from './composer.tsx';
import { Markdown } from './markdown.tsx';
import { Button, CopyButton, cn, Input, TextArea, useNow, Verbatim } from './ui.tsx';

export type SendEvents = (events: readonly object[]) => Promise<void>;
/** Longer texts of the user begin folded, so that one paste does not fill the page. */
const LONG_CHARS = 3_000;
/** Longer ones of the agent too, and as they are: as Markdown they would hold the page. */
const HUGE_CHARS = 100_000;
const FOLDED_CHARS = 1_200;
const THINKING_TAIL_CHARS = 120;

export const ChatEntry = memo(function ChatEntry(props: {
  item: ChatItem;
  sessionStatus: string;
  /** The platform waits for the client's word about this call. */
  awaited: boolean;
  send: SendEvents;
  /** Absent where the session cannot be forked yet: a message that waits. */
  onFork?: ((place: ForkPlace) => void) | undefined;
}) {
  const { item } = props;
  switch (item.kind) {
    case 'thinking':
      return <Thinking text={item.text} />;
    case 'message':
      return <Message item={item} onFork={props.onFork} />;
    case 'tool':
      return <Tool item={item} awaited={props.awaited} running={props.sessionStatus === 'running'} send={props.send} />;
    case 'error':
      return <Failed item={item} />;
    case 'note':
      return <Note text={NOTES[item.note]} />;
    case 'forked':
      return <Forked item={item} />;
    case 'waited':
      return <Note text={waited(item)} />;
  }
});

const NOTES = {
  interrupted: 'Interrupted',
  compacted: 'The conversation so far was summarised for the model; nothing is lost here',
  archived: 'The session was archived',
  refused: 'The model refused to answer',
};

/** What is above it is the other session's too. */
function Forked({ item: { at, from } }: { item: Extract<ChatItem, { kind: 'forked' }> }) {
  const missing = from.missing_tool_use_ids.length;
  return (
    <div
      role="separator"
      aria-label="Forked here"
      className="flex items-center gap-3 text-xs text-accent before:h-px before:min-w-3 before:flex-1 before:bg-accent/40 after:h-px after:min-w-3 after:flex-1 after:bg-accent/40"
    >
      <span className="flex items-center gap-1.5">
        <GitFork className="size-3.5 shrink-0" aria-hidden />
        <span>
          Forked from{' '}
          <Link className="underline" href={`/sessions/${from.session_id}`}>
            another session
          </Link>
          {at === null ? '' : ` at ${timeOfDay(at)}`};{' '}
          {from.checkpoint === null ? 'the workspace is new from here on' : 'with a copy of its files'}
          {missing === 0 ? '' : `, without what ${missing === 1 ? 'one call' : `${number(missing)} calls`} did to them`}
        </span>
      </span>
    </div>
  );
}

export function Note({ text }: { text: string }) {
  return (
    <p className="flex items-center gap-3 text-xs text-soft before:h-px before:flex-1 before:bg-line after:h-px after:flex-1 after:bg-line">
      {text}
    </p>
  );
}

/** What the model showed of its thinking, folded; while it thinks, its newest words. */
export function Thinking({ text, open = false }: { text: string; open?: boolean }) {
  if (text === '') return open ? <Working since={null} text="Thinking" /> : <Note text="Thought" />;
  return (
    <details
      className="group/thinking rounded-lg border border-dashed px-3 py-2 text-sm text-soft"
      aria-label="thinking"
    >
      <summary className="flex items-center gap-2 -outline-offset-2">
        <ChevronRight className="size-4 shrink-0 transition-transform group-open/thinking:rotate-90" aria-hidden />
        <Brain className="size-4 shrink-0" aria-hidden />
        <span className="shrink-0">{open ? 'Thinking…' : 'Thought'}</span>
        <span className="min-w-0 flex-1 truncate text-xs group-open/thinking:hidden">
          {open ? text.slice(-THINKING_TAIL_CHARS) : text}
        </span>
      </summary>
      <Verbatim className="mt-2 max-h-80 overflow-auto [overflow-wrap:anywhere] whitespace-pre-wrap">{text}</Verbatim>
    </details>
  );
}

function waited({ at, until, ...wait }: Extract<ChatItem, { kind: 'waited' }>): string {
  const tookMs = at === null || until === null ? 0 : Math.max(0, Date.parse(until) - Date.parse(at));
  return `Waited ${seconds(tookMs / 1_000)} for a sandbox: ${reasonWords({ ...wait, code: wait.reason })}`;
}

/** Nothing failed and nobody has to come: the agent goes on once its sandbox is there. */
export function Waiting({ wait }: { wait: SandboxWait }) {
  const words = reasonWords({ ...wait, code: wait.reason });
  return (
    <div role="status" className="flex gap-3 rounded-lg bg-raised p-3 text-sm">
      <Hourglass className="mt-0.5 size-4 shrink-0 text-soft" aria-hidden />
      <div className="min-w-0 flex-1 space-y-0.5 [overflow-wrap:anywhere]">
        <p>Waiting for a sandbox: {words}</p>
        <p className="text-xs text-soft">{wait.message}</p>
        <p className="text-xs text-soft">{SANDBOX_HINTS[wait.reason]}</p>
      </div>
      <span className="shrink-0 text-xs leading-5 text-soft">
        {wait.at === null ? null : <Elapsed since={wait.at} />}
      </span>
    </div>
  );
}

/** An attempt that is repeated is news; one that is not is an alarm. */
function Failed({ item }: { item: Extract<ChatItem, { kind: 'error' }> }) {
  const { error, attempts } = item;
  const isRetried = error.retry_status.type === 'retrying';
  return (
    <div
      role={isRetried ? 'status' : 'alert'}
      className={cn('flex gap-3 rounded-lg p-3 text-sm', isRetried ? 'bg-warn-soft text-warn' : 'bg-bad-soft text-bad')}
    >
      <AlertTriangle className="mt-0.5 size-4 shrink-0" aria-hidden />
      <div className="min-w-0">
        <p className="[overflow-wrap:anywhere]">{error.message}</p>
        <p className="mt-0.5 text-xs">
          {error.type.replaceAll('_', ' ')}
          {attempts > 1 ? ` · ${attempts} attempts` : ''}
          {isRetried ? ' · trying again' : ''}
          {item.at === null ? '' : ` · ${timeOfDay(item.at)}`}
        </p>
      </div>
    </div>
  );
}

/** That something is being done, and for how long. */
export function Working(props: { since: string | null; text: string; className?: string }) {
  return (
    <p className={cn('flex items-center gap-2 text-xs text-soft', props.className)}>
      <span className="size-2 animate-pulse rounded-full bg-accent" aria-hidden /> {props.text}…
      {props.since === null ? null : <Elapsed since={props.since} />}
    </p>
  );
}

/** Time since then, once it is long enough to matter. */
function Elapsed({ since }: { since: string }) {
  const elapsed = (useNow(1_000) - Date.parse(since)) / 1_000;
  return elapsed < 3 ? null : (
    <span className="tabular-nums" aria-hidden>
      {seconds(Math.floor(elapsed)).replace('.0', '')}
    </span>
  );
}

function Message(props: {
  item: Extract<ChatItem, { kind: 'message' }>;
  onFork: ((place: ForkPlace) => void) | undefined;
}) {
  const { item, onFork } = props;
  const mine = item.from !== 'agent';
  const text = item.content.flatMap((block) => (block.type === 'text' ? [block.text] : [])).join('\n\n');
  return (
    <article aria-label={item.from} className={cn('group/message flex flex-col', mine && 'items-end')}>
      <div
        className={cn('min-w-0', mine ? 'max-w-[85%] rounded-2xl rounded-br-md bg-accent-soft px-4 py-2.5' : 'w-full')}
      >
        {item.from === 'system' ? <p className="mb-1 text-xs font-medium text-soft">System message</p> : null}
        {item.content.map((block, i) => (
          // biome-ignore lint/suspicious/noArrayIndexKey: the blocks of a message never change
          <Block key={i} block={block} plain={mine} />
        ))}
      </div>
      {item.at === null ? null : (
        <div className={cn('mt-1 flex h-6 items-center gap-1 text-xs text-soft', mine && 'flex-row-reverse')}>
          <time dateTime={item.at} title={dateTime(item.at)}>
            {timeOfDay(item.at)}
          </time>
          {text === '' ? null : (
            <CopyButton
              text={text}
              label="Copy the message"
              className="opacity-0 group-hover/message:opacity-100 focus-visible:opacity-100 pointer-coarse:opacity-100"
            />
          )}
          {onFork === undefined ? null : (
            <Button
              size="icon"
              look="ghost"
              className="size-6 text-soft opacity-0 group-hover/message:opacity-100 focus-visible:opacity-100 pointer-coarse:opacity-100"
              aria-label="Fork from this message"
              title="Fork from this message"
              onClick={() => onFork({ at_event_id: item.id })}
            >
              <GitFork className="size-3.5" aria-hidden />
            </Button>
          )}
        </div>
      )}
    </article>
  );
}

function Block({ block, plain }: { block: ContentBlock; plain: boolean }) {
  if (block.type === 'text') {
    if (block.text.length > (plain ? LONG_CHARS : HUGE_CHARS)) return <LongText text={block.text} />;
    return plain ? (
      <p className="[overflow-wrap:anywhere] whitespace-pre-wrap">{block.text}</p>
    ) : (
      <Markdown text={block.text} />
    );
  }
  const file = attachedFile(block);
  if (file !== null) return <AttachedFile file={file} />;
  const { source } = block;
  if (block.type === 'image' && source.type === 'base64' && /^image\/(png|jpeg|gif|webp)$/.test(source.media_type)) {
    return (
      <img
        src={`data:${source.media_type};base64,${source.data}`}
        alt="attached"
        className="my-1 max-h-80 max-w-full rounded-lg"
      />
    );
  }
  const about = source.type === 'url' ? source.url : bytes(source.data.length);
  return (
    <p className="my-1 flex items-center gap-2 rounded-lg bg-raised px-3 py-2 text-sm">
      <FileText className="size-4 shrink-0 text-soft" aria-hidden />
      <span className="truncate">
        {block.type === 'document' ? (block.title ?? 'Document') : 'Image'} · {about}
      </span>
    </p>
  );
}

function LongText({ text }: { text: string }) {
  const [open, setOpen] = useState(false);
  return (
    <div>
      <p className="[overflow-wrap:anywhere] whitespace-pre-wrap">{open ? text : `${text.slice(0, FOLDED_CHARS)}…`}</p>
      <Button size="small" className="mt-2" data-unfolds aria-expanded={open} onClick={() => setOpen(!open)}>
        {open ? 'Fold' : `Show all ${bytes(text.length)}`}
      </Button>
    </div>
  );
}

/** What a call is about, in one line. */
function summary(item: ToolItem): string {
  const { input } = item;
  const first = [input['command'], input['file_path'], input['path'], input['pattern'], input['url']].find(
    (value) => typeof value === 'string',
  );
  return typeof first === 'string' ? first : JSON.stringify(input);
}

function Tool(props: { item: ToolItem; awaited: boolean; running: boolean; send: SendEvents }) {
  const { item, awaited } = props;
  const asks = awaited && !item.custom && item.permission === 'ask' && item.result === null && item.confirmed === null;
  const asksResult = awaited && item.custom && item.result === null;
  // What is awaited and needs nobody here is an environment worker's.
  const runs = item.result === null && (props.running || awaited) && !asks && !asksResult;
  return (
    <div
      data-tool
      className={cn(
        'overflow-hidden rounded-lg border bg-panel text-sm [[data-tool]+&]:-mt-2.5',
        (asks || asksResult) && 'border-warn',
      )}
    >
      <details className="group/tool" open={asks || asksResult ? true : undefined}>
        <summary className="flex items-center gap-2.5 px-3 py-2 -outline-offset-2 hover:bg-raised/60">
          <ChevronRight
            className="size-4 shrink-0 text-soft transition-transform group-open/tool:rotate-90"
            aria-hidden
          />
          <ToolState item={item} waits={asks || asksResult} running={runs} />
          <code className="font-mono text-xs font-semibold">
            {item.server === null ? item.name : `${item.server} › ${item.name}`}
          </code>
          <span className="min-w-0 flex-1 truncate font-mono text-xs text-soft">{summary(item)}</span>
          <span className="shrink-0 text-xs text-soft tabular-nums">
            {runs && item.at !== null ? <Elapsed since={item.at} /> : duration(item)}
          </span>
        </summary>
        <div className="border-t">
          <ToolInput item={item} />
          {item.result === null ? null : (
            <div className={cn('border-t', item.result.isError && 'bg-bad-soft')}>
              {item.result.content.length === 0 ? <p className="px-3 py-2 text-xs text-soft">No output</p> : null}
              {item.result.content.map((block, i) =>
                block.type === 'text' ? (
                  // biome-ignore lint/suspicious/noArrayIndexKey: the blocks of a result never change
                  <Text key={i} title={item.result?.isError === true ? 'Error' : 'Output'} text={block.text} />
                ) : (
                  // biome-ignore lint/suspicious/noArrayIndexKey: the blocks of a result never change
                  <div key={i} className="px-3 py-2">
                    <Block block={block} plain />
                  </div>
                ),
              )}
            </div>
          )}
        </div>
      </details>
      {asks ? <Approval id={item.id} name={item.name} send={props.send} /> : null}
      {asksResult ? <CustomResult id={item.id} name={item.name} send={props.send} /> : null}
    </div>
  );
}

/** How long a call took; of one that waited for somebody that says nothing. */
function duration({ at, result, permission, custom }: ToolItem): string {
  if (at === null || result === null || result.at === null || permission === 'ask' || custom) return '';
  return seconds(Math.max(0, Date.parse(result.at) - Date.parse(at)) / 1_000);
}

function ToolState({ item, waits, running }: { item: ToolItem; waits: boolean; running: boolean }) {
  if (item.result?.isError === true)
    return item.confirmed === 'deny' ? (
      <Ban className="size-4 text-bad" aria-label="denied" />
    ) : (
      <X className="size-4 text-bad" aria-label="failed" />
    );
  if (item.result !== null) return <Check className="size-4 text-accent" aria-label="done" />;
  if (waits) return <Clock className="size-4 text-warn" aria-label="waits for you" />;
  if (running) return <Loader2 className="size-4 animate-spin text-soft" aria-label="running" />;
  return <CircleDashed className="size-4 text-soft" aria-label="not finished" />;
}

/** A call's input, field by field: a command as it is, a change as what goes and what comes. */
function ToolInput({ item }: { item: ToolItem }) {
  const fields = Object.entries(item.input);
  if (fields.length === 0) return <p className="px-3 py-2 text-xs text-soft">No input</p>;
  return fields.map(([name, value]) => (
    <Text
      key={name}
      title={name.replaceAll('_', ' ')}
      text={typeof value === 'string' ? value : JSON.stringify(value, null, 2)}
      className={
        item.name === 'edit' && !item.custom && item.server === null
          ? name === 'old_string'
            ? 'bg-bad-soft'
            : name === 'new_string'
              ? 'bg-accent-soft'
              : ''
          : ''
      }
    />
  ));
}

function Text(props: { title: string; text: string; className?: string }) {
  return (
    <div className={cn('group/text relative px-3 py-2', props.className)}>
      <p className="mb-1 text-[11px] font-medium tracking-wide text-soft uppercase">{props.title}</p>
      <Verbatim className="max-h-80 overflow-auto font-mono text-xs leading-relaxed break-words whitespace-pre-wrap">
        {props.text}
      </Verbatim>
      <CopyButton
        text={props.text}
        label={`Copy the ${props.title.toLowerCase()}`}
        className="absolute top-1 right-1.5 opacity-0 group-hover/text:opacity-100 focus-visible:opacity-100 pointer-coarse:opacity-100"
      />
    </div>
  );
}

/** Sends what a call waits for. Its form goes with the answer, and the keyboard goes on in the message box. */
function useAnswer(send: SendEvents): { busy: boolean; answer: (event: object) => Promise<void> } {
  const [busy, setBusy] = useState(false);
  const answer = async (event: object) => {
    setBusy(true);
    try {
      await send([event]);
      document.getElementById(COMPOSER_ID)?.focus();
    } catch {
      // The reason was shown; the form is still here.
      setBusy(false);
    }
  };
  return { busy, answer };
}

function Answer(props: { onSubmit: () => void; children: ReactNode }) {
  return (
    <form
      className="space-y-2 border-t bg-warn-soft px-3 py-2.5"
      onSubmit={(event) => {
        event.preventDefault();
        props.onSubmit();
      }}
    >
      {props.children}
    </form>
  );
}

function Approval(props: { id: string; name: string; send: SendEvents }) {
  const { busy, answer } = useAnswer(props.send);
  const [reason, setReason] = useState('');
  const confirm = (result: 'allow' | 'deny') =>
    answer({
      type: 'user.tool_confirmation',
      tool_use_id: props.id,
      result,
      ...(result === 'deny' && reason.trim() !== '' ? { deny_message: reason.trim() } : {}),
    });
  return (
    // Enter in the reason denies: who wrote why not means no.
    <Answer onSubmit={() => void confirm('deny')}>
      <div className="flex flex-wrap items-center gap-2">
        <span className="mr-1 text-sm font-medium text-warn">Allow this call?</span>
        <Input
          aria-label={`Why ${props.name} is denied`}
          placeholder="Reason, if you deny it"
          className="h-8 min-w-44 flex-1 text-xs"
          maxLength={4096}
          value={reason}
          onChange={(event) => setReason(event.target.value)}
        />
        <span className="flex gap-2 max-sm:w-full max-sm:justify-end">
          <Button type="submit" className="h-8" disabled={busy}>
            Deny
          </Button>
          <Button look="primary" className="h-8" busy={busy} onClick={() => void confirm('allow')}>
            Allow
          </Button>
        </span>
      </div>
    </Answer>
  );
}

function CustomResult(props: { id: string; name: string; send: SendEvents }) {
  const { busy, answer } = useAnswer(props.send);
  const [text, setText] = useState('');
  const [isError, setIsError] = useState(false);
  const id = useId();
  return (
    <Answer
      onSubmit={() =>
        void answer({
          type: 'user.custom_tool_result',
          custom_tool_use_id: props.id,
          content: text === '' ? [] : [{ type: 'text', text }],
          ...(isError ? { is_error: true } : {}),
        })
      }
    >
      <label htmlFor={id} className="block text-sm font-medium text-warn">
        {props.name} is a tool of the client. Its result:
      </label>
      <TextArea
        id={id}
        rows={3}
        className="font-mono text-xs"
        value={text}
        onChange={(event) => setText(event.target.value)}
        onKeyDown={(event) => {
          if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) event.currentTarget.form?.requestSubmit();
        }}
      />
      <div className="flex items-center justify-between">
        <label className="flex items-center gap-2 text-xs">
          <input
            type="checkbox"
            className="accent-accent"
            checked={isError}
            onChange={(event) => setIsError(event.target.checked)}
          />{' '}
          It failed
        </label>
        <Button look="primary" size="small" type="submit" busy={busy}>
          Send the result
        </Button>
      </div>
    </Answer>
  );
}
