'use client';
import { cva, type VariantProps } from 'class-variance-authority';
import { clsx } from 'clsx';
import { AlertTriangle, Loader2 } from 'lucide-react';
import { Dialog as RadixDialog } from 'radix-ui';
import { type ComponentProps, createContext, type ReactNode, useContext, useId } from 'react';
import { twMerge } from 'tailwind-merge';
import { messageOf } from '../lib/api.ts';
import { ago, dateTime } from '../lib/format.ts';

export const cn = (...classes: Parameters<typeof clsx>): string => twMerge(clsx(...classes));

const button = cva(
  'inline-flex items-center justify-center gap-1.5 rounded-lg text-sm font-medium whitespace-nowrap transition-colors disabled:opacity-50 disabled:cursor-not-allowed',
  {
    variants: {
      look: {
        primary: 'bg-accent text-accent-ink hover:opacity-90',
        plain: 'border bg-panel hover:bg-raised',
        ghost: 'text-soft hover:bg-raised hover:text-ink',
        danger: 'bg-bad text-page hover:opacity-90',
      },
      size: { normal: 'h-9 px-3.5', small: 'h-7 px-2.5 text-xs', icon: 'size-9' },
    },
    defaultVariants: { look: 'plain', size: 'normal' },
  },
);
interface ButtonProps extends ComponentProps<'button'>, VariantProps<typeof button> {
  readonly busy?: boolean;
}
export function Button({
  look,
  size,
  busy = false,
  className,
  children,
  disabled,
  type = 'button',
  ...rest
}: ButtonProps) {
  return (
    <button
      type={type}
      className={cn(button({ look, size }), className)}
      disabled={disabled === true || busy}
      {...rest}
    >
      {busy ? <Loader2 className="size-4 animate-spin" aria-hidden /> : null}
      {children}
    </button>
  );
}
export const buttonClass = (look: 'primary' | 'plain' | 'ghost', size: 'normal' | 'small' = 'normal'): string =>
  button({ look, size });

const field = 'w-full rounded-lg border bg-panel px-3 text-sm placeholder:text-soft/70 disabled:opacity-60';
/** Ties a control to the label, hint and error of the field around it. */
const FieldContext = createContext<{ id?: string; 'aria-describedby'?: string }>({});
export function Input({ className, ...rest }: ComponentProps<'input'>) {
  return <input {...useContext(FieldContext)} className={cn(field, 'h-9', className)} {...rest} />;
}
export function TextArea({ className, ...rest }: ComponentProps<'textarea'>) {
  return <textarea {...useContext(FieldContext)} className={cn(field, 'py-2 leading-relaxed', className)} {...rest} />;
}
export function Select({ className, ...rest }: ComponentProps<'select'>) {
  return <select {...useContext(FieldContext)} className={cn(field, 'h-9 pr-8', className)} {...rest} />;
}

/** A labelled control with its hint or what is wrong with it. */
export function Field(props: { label: string; hint?: ReactNode; error?: string | undefined; children: ReactNode }) {
  const id = useId();
  const about = `${id}-about`;
  return (
    <FieldContext value={{ id, 'aria-describedby': about }}>
      <div className="space-y-1.5">
        <label htmlFor={id} className="block text-sm font-medium">
          {props.label}
        </label>
        {props.children}
        {props.error !== undefined ? (
          <p id={about} role="alert" className="text-xs text-bad">
            {props.error}
          </p>
        ) : props.hint === undefined ? null : (
          <p id={about} className="text-xs text-soft">
            {props.hint}
          </p>
        )}
      </div>
    </FieldContext>
  );
}

const badge = cva('inline-flex items-center gap-1.5 rounded-full px-2 py-0.5 text-xs font-medium', {
  variants: {
    tone: {
      neutral: 'bg-raised text-soft',
      good: 'bg-accent-soft text-accent',
      warn: 'bg-warn-soft text-warn',
      bad: 'bg-bad-soft text-bad',
    },
  },
  defaultVariants: { tone: 'neutral' },
});
export function Badge({ tone, className, ...rest }: ComponentProps<'span'> & VariantProps<typeof badge>) {
  return <span className={cn(badge({ tone }), className)} {...rest} />;
}

export function PageHeader(props: { title: ReactNode; about?: ReactNode; children?: ReactNode }) {
  return (
    <header className="mb-5 flex flex-wrap items-start justify-between gap-3">
      <div className="min-w-0">
        <h1 className="truncate text-xl font-semibold tracking-tight">{props.title}</h1>
        {props.about === undefined ? null : <div className="mt-0.5 text-sm text-soft">{props.about}</div>}
      </div>
      <div className="flex items-center gap-2">{props.children}</div>
    </header>
  );
}

export function Panel({ className, ...rest }: ComponentProps<'section'>) {
  return <section className={cn('rounded-xl border bg-panel', className)} {...rest} />;
}

export function Empty(props: { icon: ReactNode; title: string; children?: ReactNode }) {
  return (
    <div className="flex flex-col items-center gap-2 px-6 py-16 text-center">
      <div className="mb-1 text-soft [&>svg]:size-8">{props.icon}</div>
      <p className="font-medium">{props.title}</p>
      <div className="max-w-md space-y-4 text-sm text-soft">{props.children}</div>
    </div>
  );
}

export function Failure(props: { error: unknown; onRetry?: () => void }) {
  return (
    <div role="alert" className="flex flex-col items-center gap-3 px-6 py-16 text-center">
      <AlertTriangle className="size-8 text-bad" aria-hidden />
      <p className="max-w-lg text-sm">{messageOf(props.error)}</p>
      {props.onRetry === undefined ? null : <Button onClick={props.onRetry}>Try again</Button>}
    </div>
  );
}

export function Loading(props: { rows?: number }) {
  return (
    <div role="status" aria-label="Loading" className="space-y-3 p-4">
      {Array.from({ length: props.rows ?? 5 }, (_, i) => (
        // biome-ignore lint/suspicious/noArrayIndexKey: they are all alike
        <div key={i} className="h-9 animate-pulse rounded-lg bg-raised" />
      ))}
    </div>
  );
}

export function Time(props: { at: string }) {
  return (
    <time dateTime={props.at} title={dateTime(props.at)} suppressHydrationWarning>
      {ago(props.at)}
    </time>
  );
}

export function Modal(props: {
  open: boolean;
  onClose: () => void;
  title: string;
  about?: ReactNode;
  children: ReactNode;
}) {
  return (
    <RadixDialog.Root open={props.open} onOpenChange={(open) => (open ? undefined : props.onClose())}>
      <RadixDialog.Portal>
        <RadixDialog.Overlay className="fixed inset-0 z-40 bg-black/40" />
        <RadixDialog.Content
          {...(props.about === undefined ? { 'aria-describedby': undefined } : {})}
          className="fixed top-1/2 left-1/2 z-50 max-h-[90dvh] w-[min(34rem,calc(100vw-2rem))] -translate-x-1/2 -translate-y-1/2 overflow-y-auto rounded-xl border bg-panel p-5 shadow-xl"
        >
          <RadixDialog.Title className="text-base font-semibold">{props.title}</RadixDialog.Title>
          {props.about === undefined ? null : (
            <RadixDialog.Description className="mt-1 text-sm text-soft">{props.about}</RadixDialog.Description>
          )}
          <div className="mt-4">{props.children}</div>
        </RadixDialog.Content>
      </RadixDialog.Portal>
    </RadixDialog.Root>
  );
}

/** Asks before something that cannot be taken back. */
export function Confirm(props: {
  open: boolean;
  title: string;
  about: ReactNode;
  action: string;
  busy: boolean;
  onConfirm: () => void;
  onClose: () => void;
}) {
  return (
    <Modal open={props.open} onClose={props.onClose} title={props.title} about={props.about}>
      <div className="flex justify-end gap-2">
        <Button onClick={props.onClose}>Cancel</Button>
        <Button look="danger" busy={props.busy} onClick={props.onConfirm}>
          {props.action}
        </Button>
      </div>
    </Modal>
  );
}
